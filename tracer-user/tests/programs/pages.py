"""Resident memory that comes and goes in known ways: `pages.py CASE`. Each case prints what the kernel says that it holds in the end, beyond what it had at its
beginning, in bytes: the growth of RssAnon in /proc/self/status."""
import ctypes
import gc
import mmap
import os
import sys
import threading

MIB = 1 << 20
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.sbrk.restype = ctypes.c_void_p
libc.sbrk.argtypes = [ctypes.c_long]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

PRIVATE_ANONYMOUS = 0x22
POPULATE = 0x8000
DONTNEED, HUGEPAGE, NOHUGEPAGE = 4, 14, 15


def resident():
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024


def room(size, flags=0):
    address = libc.mmap(None, size, 3, PRIVATE_ANONYMOUS | flags, -1, 0)
    assert address not in (None, 2**64 - 1)
    return address


def touch(address, size):
    libc.memset(address, 1, size)


def case_list():
    return [number for number in range(2_000_000)]


def case_dropped_list():
    kept = [bytes(1000) for _ in range(50_000)]
    dropped = [number for number in range(3_000_000)]
    del dropped
    gc.collect()
    return kept


def case_growing_list():
    # One array that is moved as it grows, by mremap.
    grown = []
    for number in range(6_000_000):
        grown.append(None)
    return grown


def case_mmap():
    address = room(200 * MIB)
    touch(address, 150 * MIB)
    # From both ends, the middle, and much that was never touched.
    libc.munmap(address, 10 * MIB)
    libc.munmap(address + 50 * MIB + 4096, 30 * MIB)
    libc.munmap(address + 140 * MIB, 60 * MIB)


def case_mmap_all():
    for size in (1, 3, 64, 300):
        address = room(size * MIB)
        touch(address, size * MIB)
        libc.munmap(address, size * MIB)


def case_dontneed():
    address = room(40 * MIB)
    for _ in range(5):
        touch(address, 40 * MIB)
        libc.madvise(address, 40 * MIB, DONTNEED)
    touch(address, 20 * MIB)


def case_sparse():
    # A page each 8 MiB of 16 GiB, and all of it taken away but the last GiB.
    address = libc.mmap(None, 16 << 30, 3, PRIVATE_ANONYMOUS | 0x4000, -1, 0)
    for offset in range(0, 16 << 30, 8 * MIB):
        touch(address + offset, 4096)
    libc.munmap(address, 15 << 30)
    kept = room(8 * MIB)
    touch(kept, 8 * MIB)


def case_brk():
    libc.sbrk(0)
    address = libc.sbrk(60 * MIB)
    touch(address, 60 * MIB)
    libc.sbrk(-20 * MIB)


def case_read():
    # The kernel writes into memory that was never touched.
    address = room(80 * MIB)
    with open("/dev/zero", "rb", buffering=0) as zeros:
        libc.read(zeros.fileno(), ctypes.c_void_p(address), 64 * MIB)


def case_huge():
    address = room(102 * MIB)
    aligned = (address + 2 * MIB - 1) & ~(2 * MIB - 1)
    assert libc.madvise(aligned, 100 * MIB, HUGEPAGE) == 0
    touch(aligned, 80 * MIB)
    # Half of some, the whole of others.
    libc.munmap(aligned, 5 * MIB)
    libc.madvise(aligned + 20 * MIB, 20 * MIB, DONTNEED)


def case_zero_page():
    # Read first: the kernel maps its page of zeros, which is nobody's.
    address = room(32 * MIB)
    view = (ctypes.c_char * (32 * MIB)).from_address(address)
    for offset in range(0, 32 * MIB, 4096):
        view[offset]
    touch(address, 16 * MIB)


def case_private_file():
    # Pages of a file that become the process's own once they are written to.
    with open(sys.argv[2], "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    total = sum(mapped[offset] for offset in range(0, len(mapped), 4096))
    for offset in range(0, len(mapped) // 2, 4096):
        mapped[offset] = 1
    return mapped, total


def case_threads():
    def work():
        address = room(30 * MIB)
        touch(address, 30 * MIB)
        libc.munmap(address, 15 * MIB)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def case_across_threads():
    # One thread touches, another takes away.
    address = room(64 * MIB)
    for function, arguments in ((touch, (address, 64 * MIB)), (libc.munmap, (address, 32 * MIB))):
        thread = threading.Thread(target=function, args=arguments)
        thread.start()
        thread.join()


def case_populate():
    # Nobody touches it: the kernel does, without a page fault.
    room(50 * MIB, POPULATE)


def case_fork():
    kept = bytearray(b"x" * (40 * MIB))
    child = os.fork()
    if child == 0:
        sys.stdin.readline()
        before = resident()
        for offset in range(0, 20 * MIB, 4096):
            kept[offset] = 2
        more = bytearray(b"y" * (30 * MIB))
        print(resident() - before, flush=True)
        sys.stdin.readline()
        os._exit(len(more) == 0)
    # Breaks the sharing here as well.
    for offset in range(0, 10 * MIB, 4096):
        kept[offset] = 3
    print(child, flush=True)
    os.waitpid(child, 0)
    return kept


def case_attached():
    old = room(60 * MIB)
    touch(old, 60 * MIB)
    print("ready", flush=True)
    sys.stdin.readline()
    # Half of what was there goes, a part of that comes again, and there is more.
    libc.munmap(old, 20 * MIB)
    libc.madvise(old + 20 * MIB, 10 * MIB, DONTNEED)
    touch(old + 20 * MIB, 10 * MIB)
    touch(room(40 * MIB), 40 * MIB)
    print("done", flush=True)
    sys.stdin.readline()


def main():
    before = resident()
    kept = globals()["case_" + sys.argv[1]]()
    print(resident() - before, flush=True)
    return kept


if __name__ == "__main__":
    kept = main()
    # Nothing is given back before the recording has been compared.
    os._exit(0)
