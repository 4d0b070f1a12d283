"""Four threads that allocate and free as fast as they can, each keeping a known amount in a function of its own.

With an argument, so many turns before and after; the fewer for slow machines.
"""
import ctypes, os, sys, threading

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
kept = {}
TURNS = int(sys.argv[1]) if len(sys.argv) > 1 else 40


def churn(number):
    for turn in range(TURNS):
        blocks = [bytes(place % 500) for place in range(500)]
        for _ in range(50):
            libc.free(ctypes.c_void_p(libc.malloc(ctypes.c_size_t(1000 + turn))))
        del blocks


def fill(number):
    blocks = [None] * 3000
    for place in range(3000):
        blocks[place] = bytes(100 + 16 * number)
    kept[number] = blocks


def keep_0():
    fill(0)


def keep_1():
    fill(1)


def keep_2():
    fill(2)


def keep_3():
    fill(3)


def work(number, keep):
    churn(number)
    keep()
    churn(number)


threads = [threading.Thread(target=work, args=pair) for pair in enumerate((keep_0, keep_1, keep_2, keep_3))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
os._exit(0)
