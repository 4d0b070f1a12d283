#!/bin/sh
# Builds CPython by clang from Debian's source: `build.sh WORK ROOT`. WORK holds the archive, ROOT becomes the interpreter's own folder.
set -eu
work=$1 root=$2
rm -rf "$work/python" "$root"
mkdir "$work/python"
tar -x -f "$work"/python3*.orig.tar.* -C "$work/python" --strip-components=1
cd "$work/python"
# What no test needs and takes long to compile.
for codec in cn hk iso2022 jp kr tw; do
    export "py_cv_module__codecs_$codec=n/a"
done
CC=clang ./configure --quiet --prefix="$root" --disable-test-modules --without-ensurepip --without-readline
make -s -j"$(nproc)"
# Not `install`: it compiles the whole library three times.
make -s altbininstall sharedinstall inclinstall
library=$(echo "$root"/lib/python3.*)
cp -R Lib/. build/lib.*/_sysconfigdata*.py "$library"
rm -rf "$library/test"
cd /
rm -rf "$work"
