"""Calls every function of an allocator in a Python function of its own, says which there are, and leaves with known blocks still there.

Arguments: the library to load, or nothing for what the process calls; a prefix of its names; `wait` to wait for a line first.
"""
import ctypes, os, sys

arguments = sys.argv[1:] + [""] * 3
library = ctypes.CDLL(arguments[0] or None)
size = ctypes.c_size_t
pointer = ctypes.c_void_p
TIMES = 50
ran = []


def find(name, prefix=arguments[1]):
    function = getattr(library, prefix + name, None)
    if function is not None:
        function.restype = pointer
    return function


def by_bytearray():
    return [bytearray(100_000) for _ in range(TIMES)]


def by_malloc(function):
    return [function(size(1000)) for _ in range(TIMES)]


def by_calloc(function):
    return [function(size(10), size(70)) for _ in range(TIMES)]


def by_posix_memalign(function):
    for _ in range(TIMES):
        assert not function(ctypes.byref(pointer()), size(64), size(900))


def by_aligned_alloc(function):
    assert all(function(size(64), size(640)) for _ in range(TIMES))


def by_memalign(function):
    assert all(function(size(128), size(1100)) for _ in range(TIMES))


def by_valloc(function):
    assert all(function(size(5000)) for _ in range(TIMES))


def by_new(function):
    assert all(function(size(1200)) for _ in range(TIMES))


def by_new_array(function):
    assert all(function(size(1210)) for _ in range(TIMES))


def by_new_aligned(function):
    assert all(function(size(1220), size(64)) for _ in range(TIMES))


def by_new_nothrow(function):
    assert all(function(size(1230), None) for _ in range(TIMES))


def by_mallocx(function):
    assert all(function(size(1240), 0) for _ in range(TIMES))


def by_zalloc(function):
    assert all(function(size(1260)) for _ in range(TIMES))


def by_malloc_aligned(function):
    assert all(function(size(1270), size(64)) for _ in range(TIMES))


def to_be_resized():
    return [MALLOC(size(700)) for _ in range(TIMES)]


def by_realloc(function):
    assert all([function(pointer(block), size(200_000)) for block in to_be_resized()])


def by_rallocx(function):
    assert all([function(pointer(block), size(1250), 0) for block in to_be_resized()])


def by_realloc_aligned(function):
    assert all([function(pointer(block), size(1280), size(64)) for block in to_be_resized()])


def to_be_freed():
    return [MALLOC(size(950)) for _ in range(TIMES)]


def frees(function, *more):
    for block in to_be_freed():
        function(pointer(block), *more)


MALLOC = find("malloc")
ALLOCATING = [
    ("malloc", by_malloc),
    ("calloc", by_calloc),
    ("posix_memalign", by_posix_memalign),
    ("aligned_alloc", by_aligned_alloc),
    ("memalign", by_memalign),
    ("valloc", by_valloc),
    ("mallocx", by_mallocx),
    ("zalloc", by_zalloc),
    ("malloc_aligned", by_malloc_aligned),
    ("realloc", by_realloc),
    ("rallocx", by_rallocx),
    ("realloc_aligned", by_realloc_aligned),
]
OPERATORS = [
    ("_Znwm", by_new),
    ("_Znam", by_new_array),
    ("_ZnwmSt11align_val_t", by_new_aligned),
    ("_ZnwmRKSt9nothrow_t", by_new_nothrow),
]
FREEING = [
    ("free", ()),
    ("dallocx", (0,)),
    ("sdallocx", (size(950), 0)),
    ("free_size", (size(950),)),
    ("free_aligned", (size(16),)),
]
DELETING = [("_ZdlPv", ()), ("_ZdaPv", ()), ("_ZdlPvm", (size(950),)), ("_ZdlPvRKSt9nothrow_t", (None,))]

if arguments[2] == "wait":
    print("loaded", flush=True)
    sys.stdin.readline()
kept = by_bytearray()
found = [(find(name), function) for name, function in ALLOCATING]
found += [(find(name, ""), function) for name, function in OPERATORS]
for function, caller in found:
    if function is not None:
        caller(function)
        ran.append(caller.__name__)
for functions, prefix in ((FREEING, arguments[1]), (DELETING, "")):
    for name, more in functions:
        function = find(name, prefix)
        if function is not None:
            frees(function, *more)
            ran.append(f"frees:{name}")
print(*ran, flush=True)
os._exit(0)
