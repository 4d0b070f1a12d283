#!/bin/busybox sh
# First program of a guest: makes the folders that Linux programs expect, runs the tests, and switches the machine off.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/home
/bin/busybox --install -s /bin 2>/dev/null
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev 2>/dev/null
mount -t debugfs debug /sys/kernel/debug; mount -t tracefs trace /sys/kernel/tracing; mount -t tmpfs tmp /tmp; mount -t tmpfs run /run
echo "VM: up"
python3.11 -I /tests/guest.py $(sed 's/.*tests=\([^ ]*\).*/\1/' /proc/cmdline | tr , ' ')
poweroff -f
