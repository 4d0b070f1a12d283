"""Threads that allocate at once without a lock and free one another's blocks, under tracemalloc; prints threads, and what tracemalloc says of each line."""
import json, os, threading, tracemalloc

tracemalloc.start(1)
THREADS, NUMBER = 6, 500
barrier = threading.Barrier(THREADS)
kept = {}


class Slotted:
    __slots__ = ("first", "second")


def keep(number):
    blocks = [None] * (5 * NUMBER)
    for place in range(0, 5 * NUMBER, 5):
        blocks[place] = bytes(40 + 16 * number)
        blocks[place + 1] = bytearray(1000 + number)
        blocks[place + 2] = Slotted()
        blocks[place + 3] = "x%dy" % place * 20
        blocks[place + 4] = frozenset((number, barrier))
    return blocks


def drop(blocks):
    for place in range(0, len(blocks), 2):
        blocks[place] = None


def work(number):
    os.write(1, f"{number} {threading.get_native_id()}\n".encode())
    barrier.wait()
    kept[number] = keep(number)
    barrier.wait()
    drop(kept[(number + 1) % THREADS])
    barrier.wait()


def spent(size):
    """What mimalloc spends on a request: two words' steps up to 64 bytes, then four classes to each doubling (`_mi_bin`, Objects/mimalloc/page.c)."""
    words = max(2, -(-size // 8))
    if words <= 8:
        return (words + 1) // 2 * 16
    step = 1 << max(0, (words - 1).bit_length() - 3)
    return -(-words // step) * step * 8


threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
lines = {}
for trace in tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, __file__)]).traces:
    line = lines.setdefault(trace.traceback[0].lineno, [0, 0])
    line[0] += spent(trace.size)
    line[1] += 1
print(json.dumps(lines), flush=True)
os._exit(0)
