"""Workers that come one after the other: `workers.py KIND NUMBER FOLDER`.

Each worker says its process number and its own on standard output, waits until FOLDER has a file `go-` with its own number, makes some
hundred stacks that no other process has, holds ten blocks and one more for each of its own number modulo seven, and ends.

KIND is `fork`, `exec` for programs of their own, or `same` for forks that all have the first one's process number.
"""
import os, sys, time

LAST_NUMBER = "/proc/sys/kernel/ns_last_pid"


def deep(depth):
    if depth:
        return deep(depth - 1)
    first = bytes(600)
    second = bytearray(700)
    third = object()
    fourth = [third]
    fifth = bytearray(800)
    return first, second, fourth, fifth


def hold(number):
    return [bytes(100_000) for _ in range(number)]


def worker(number, folder):
    os.write(1, b"%d %d\n" % (os.getpid(), number))
    while not os.path.exists(os.path.join(folder, "go-%d" % number)):
        time.sleep(0.001)
    for depth in range(40):
        deep(depth)
    kept = hold(10 + number % 7)
    os._exit(0 if kept else 1)


def forked(number, folder):
    pid = os.fork()
    if pid == 0:
        worker(number, folder)
    os.waitpid(pid, 0)
    return pid


def same(number, folder, wanted):
    """Others take process numbers as well: it is tried until it gets the wanted one."""
    while True:
        with open(LAST_NUMBER, "w") as last:
            last.write(str(wanted - 1))
        pid = os.fork()
        if pid == 0:
            if os.getpid() == wanted:
                worker(number, folder)
            os._exit(0)
        os.waitpid(pid, 0)
        if pid == wanted:
            return


def main(kind, number, folder):
    if kind == "worker":
        worker(number, folder)
    elif kind == "fork":
        for place in range(number):
            forked(place, folder)
    elif kind == "same":
        first = forked(0, folder)
        for place in range(1, number):
            same(place, folder, first)
    else:
        import subprocess

        for place in range(number):
            command = [sys.executable, "-I", __file__, "worker", str(place), folder]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
