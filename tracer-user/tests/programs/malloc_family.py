"""Calls each function of the malloc family in a Python function of its own, and leaves with known blocks still there."""
import ctypes, os

libc = ctypes.CDLL(None)
size = ctypes.c_size_t
for name in ("malloc", "calloc", "realloc", "aligned_alloc", "memalign", "valloc", "pvalloc", "reallocarray"):
    if hasattr(libc, name):  # musl has no pvalloc
        getattr(libc, name).restype = ctypes.c_void_p
IS_MUSL = not hasattr(libc, "pvalloc")
pointer = ctypes.c_void_p
TIMES = 50
kept = []


def by_malloc():
    return [libc.malloc(size(1000)) for _ in range(TIMES)]


def by_calloc():
    return [libc.calloc(size(10), size(70)) for _ in range(TIMES)]


def by_posix_memalign():
    for _ in range(TIMES):
        block = pointer()
        assert libc.posix_memalign(ctypes.byref(block), size(64), size(900)) == 0


def by_posix_memalign_refused():
    for _ in range(TIMES):
        block = pointer()
        assert libc.posix_memalign(ctypes.byref(block), size(3), size(900)) != 0


def by_aligned_alloc():
    for _ in range(TIMES):
        assert libc.aligned_alloc(size(64), size(640))


def by_memalign():
    for _ in range(TIMES):
        assert libc.memalign(size(128), size(1100))


def by_valloc():
    for _ in range(TIMES):
        assert libc.valloc(size(5000))


def by_pvalloc():
    for _ in range(TIMES):
        assert libc.pvalloc(size(8192))


def by_realloc_of_null():
    for _ in range(TIMES):
        assert libc.realloc(None, size(1300))


def by_reallocarray(blocks):
    for block in blocks:
        assert libc.reallocarray(pointer(block), size(20), size(100))


def for_reallocarray():
    return [libc.malloc(size(600)) for _ in range(TIMES)]


def for_moves():
    return [libc.malloc(size(700)) for _ in range(TIMES)]


def by_moves(blocks):
    moved = sum(libc.realloc(pointer(block), size(200_000)) != block for block in blocks)
    assert moved > TIMES // 2, moved


def for_failures():
    return [libc.malloc(size(800)) for _ in range(TIMES)]


def by_failures(blocks):
    for block in blocks:
        assert libc.realloc(pointer(block), size(1 << 62)) is None
        assert libc.reallocarray(pointer(block), size(1 << 40), size(1 << 40)) is None
        assert libc.malloc(size(1 << 62)) is None
        assert libc.calloc(size(1 << 40), size(1 << 40)) is None


def for_zero():
    return [libc.malloc(size(850)) for _ in range(TIMES)]


def by_zero(blocks):
    for block in blocks:
        # musl gives a block of no bytes, glibc gives none.
        assert (libc.realloc(pointer(block), size(0)) is None) != IS_MUSL


def for_free():
    return [libc.malloc(size(950)) for _ in range(TIMES)]


def by_free(blocks):
    for block in blocks:
        libc.free(pointer(block))
    libc.free(None)


by_malloc()
by_calloc()
by_posix_memalign()
by_posix_memalign_refused()
by_aligned_alloc()
by_memalign()
by_valloc()
if not IS_MUSL:
    by_pvalloc()
by_realloc_of_null()
by_reallocarray(for_reallocarray())
by_moves(for_moves())
by_failures(for_failures())
by_zero(for_zero())
by_free(for_free())
os._exit(0)
