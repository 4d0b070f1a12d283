"""Threads that allocate known amounts at once, with and without the interpreter's lock; prints each thread's name and id."""
import ctypes, os, threading

THREADS, NUMBER = 6, 2000
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
barrier = threading.Barrier(THREADS)
kept = {}


def keep_python(number):
    blocks = [None] * NUMBER
    for place in range(NUMBER):
        blocks[place] = bytes(100 + 16 * number)
    return blocks


def keep_native(number):
    """ctypes gives the lock away before it calls malloc."""
    for _ in range(NUMBER):
        libc.malloc(ctypes.c_size_t(10_000 + number))


def work(number):
    barrier.wait()
    print(number, threading.get_native_id(), flush=True)
    kept[number] = keep_python(number)
    keep_native(number)
    barrier.wait()


threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
os._exit(0)
