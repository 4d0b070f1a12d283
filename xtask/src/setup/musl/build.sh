#!/bin/sh
# Builds CPython against musl from Debian's sources and Debian's musl: `build.sh WORK ROOT MULTIARCH`.
#
# WORK holds the archives: the packages musl, musl-dev, musl-tools and libffi-dev, and the source of CPython. ROOT becomes
# the interpreter's own folder. Debian has no such interpreter, and nothing prebuilt comes from a package registry.
# The interpreter is linked to the loader in ROOT by its path, so it runs where it is: no root directory of its own is needed.
set -eu
work=$1 root=$2 multiarch=$3
machine=${multiarch%-linux-musl}
jobs=$(nproc)

# musl as Alpine lays it out: the loader is the C library, and a file of its own.
rm -rf "$work/musl" "$root"
mkdir -p "$work/musl" "$root/lib"
for archive in "$work"/musl*.deb; do
    dpkg-deb -x "$archive" "$work/musl"
done
dpkg-deb -x "$work"/libffi-dev_*.deb "$work/ffi"
musl=$work/musl/usr
loader=$root/lib/ld-musl-$machine.so.1
cp "$musl/lib/$multiarch/libc.so" "$loader"
for folder in linux asm-generic; do
    ln -s "/usr/include/$folder" "$musl/include/$multiarch/$folder"
done
ln -s "/usr/include/$machine-linux-gnu/asm" "$musl/include/$multiarch/asm"

# The packages expect to be installed; this one is told where it lies.
sed -i -e "s:/usr/\(include\|lib\)/$multiarch:$musl/\1/$multiarch:g" -e "s:-dynamic-linker [^ ]*:-dynamic-linker $loader:" \
    "$musl/lib/$multiarch/musl-gcc.specs"
cat > "$work/musl-cc" <<EOF
#!/bin/sh
# configure asks for the triplet by this flag, and gcc would name glibc's.
[ "\$1" = --print-multiarch ] && echo $multiarch && exit
exec gcc "\$@" -specs "$musl/lib/$multiarch/musl-gcc.specs"
EOF
chmod +x "$work/musl-cc"
export CC="$work/musl-cc" PKG_CONFIG=/bin/false

# ctypes needs libffi. Debian's archive of it was built against glibc, but calls nothing that musl has not.
cp "$work"/ffi/usr/lib/*/libffi_pic.a "$musl/lib/$multiarch/libffi.a"
cp "$work"/ffi/usr/include/*/ffi*.h "$musl/include/$multiarch/"

rm -rf "$work/python"
mkdir "$work/python"
tar -x -f "$work"/python3*.orig.tar.* -C "$work/python" --strip-components=1
cd "$work/python"
export LIBFFI_CFLAGS="-I$musl/include/$multiarch" LIBFFI_LIBS="-lffi"
# What no test needs and takes long to compile.
for codec in cn hk iso2022 jp kr tw; do
    export "py_cv_module__codecs_$codec=n/a"
done
./configure --quiet --prefix="$root" --disable-test-modules --without-ensurepip --without-readline \
    OPT="-DNDEBUG -O2 -fwrapv -fno-strict-overflow"
make -s -j"$jobs"
# Not `install`: it compiles the whole library three times.
make -s altbininstall sharedinstall inclinstall
library=$(echo "$root"/lib/python3.*)
cp -R Lib/. build/lib.*/_sysconfigdata*.py "$library"
rm -rf "$library/test"

cd /
rm -rf "$work"
