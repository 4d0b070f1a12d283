"""Does what it is told, line by line: each line of standard input is a statement, answered by `done` or by what it prints."""
import ctypes, os, sys, threading

libc = ctypes.CDLL(None)
for name in ("malloc", "calloc", "realloc", "aligned_alloc", "memalign", "valloc", "pvalloc", "reallocarray"):
    if hasattr(libc, name):  # musl has no pvalloc
        getattr(libc, name).restype = ctypes.c_void_p
kept = [None] * 100_000


def keep(number, size):
    for place in range(number):
        kept[place] = bytes(size)


def drop(number):
    for place in range(number):
        kept[place] = None


def allocate(size):
    return libc.malloc(ctypes.c_size_t(size))


def release(address):
    libc.free(ctypes.c_void_p(address))


def resize(address, size):
    return libc.realloc(ctypes.c_void_p(address), ctypes.c_size_t(size))


def fork_and_keep(number, size):
    """The child waits until standard input ends."""
    child = os.fork()
    if child == 0:
        keep(number, size)
        os.read(0, 1) if False else threading.Event().wait()
    return child


print("ready", flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
