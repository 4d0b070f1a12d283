"""Makes memory of a known shape and says what its own allocators know of it.

Each line of standard input is a step: `step` goes on in the case argv[1], `truth` prints what pymalloc
(`sys._debugmallocstats`) and malloc (`mallinfo2`) say, as JSON. Every step is answered by one line.
"""
import ctypes
import json
import os
import re
import sys
import tempfile
import threading

FIELDS = ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]
LIBRARY = ctypes.CDLL(None)


def function_of_malloc():
    """`mallinfo2`, or before glibc 2.33 `mallinfo`; musl has neither."""
    for name, number in [("mallinfo2", ctypes.c_size_t), ("mallinfo", ctypes.c_int)]:
        if hasattr(LIBRARY, name):
            class Info(ctypes.Structure):
                _fields_ = [(field, number) for field in FIELDS]
            found = getattr(LIBRARY, name)
            found.restype = Info
            return found
    return None


MALLINFO = function_of_malloc()
STATISTICS = tempfile.TemporaryFile()
PATTERNS = {
    "pools_in_use": rb"# bytes in allocated blocks +=\s*([\d,]+)",
    "pools_free_blocks": rb"# bytes in available blocks +=\s*([\d,]+)",
    "pools_unused": rb"unused pools \* [\d,]+ bytes +=\s*([\d,]+)",
    "arenas": rb"arenas \* [\d,]+ bytes/arena +=\s*([\d,]+)",
}


def truth():
    saved = os.dup(2)
    STATISTICS.seek(0)
    STATISTICS.truncate()
    os.dup2(STATISTICS.fileno(), 2)
    sys._debugmallocstats()
    os.dup2(saved, 2)
    os.close(saved)
    STATISTICS.seek(0)
    text = STATISTICS.read()
    found = {}
    for name, pattern in PATTERNS.items():
        match = re.search(pattern, text)
        found[name] = int(match.group(1).replace(b",", b"")) if match else None
    if MALLINFO:
        # As a method `mallinfo` looks at the main arena only for some fields; glibc sums these over all arenas.
        info = MALLINFO()
        found.update({field: getattr(info, field) for field in FIELDS})
    return found


def case_mixed():
    """Small and large blocks, a third of them freed again."""
    blocks = [bytes(1 + (number * 37) % 3000) for number in range(60_000)]
    large = [bytearray(200_000 + number) for number in range(40)]
    for number in range(0, len(blocks), 3):
        blocks[number] = None
    yield blocks, large


def case_fragment():
    """Many of one size, then all but each 50th go: what stays keeps the others' memory."""
    small = [bytes(300) for _ in range(150_000)]
    large = [bytes(1500) for _ in range(20_000)]
    yield small, large
    small = small[::50]
    large = large[::50]
    yield small, large


def case_leak():
    kept = []
    while True:
        kept.append([bytes(300) for _ in range(20_000)])
        kept.append([bytes(2000) for _ in range(2_000)])
        yield kept


def case_threads():
    """Threads with arenas of their own: some end and leave holes, some stay."""
    stay = threading.Event()
    done = threading.Semaphore(0)

    def work():
        kept = [bytearray(600 + number % 900) for number in range(8_000)]
        for number in range(0, len(kept), 2):
            kept[number] = None
        done.release()
        stay.wait()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in threads:
        done.acquire()
    yield threads


def case_churn():
    """Never rests, in two threads; blocks of all sizes."""
    def work():
        kept = [None] * 3000
        number = 0
        while True:
            number += 1
            kept[(number * 7919) % len(kept)] = bytearray((number * 104729) % 5000)
            if number % 50_000 == 0:
                kept[0] = bytearray(3_000_000)

    for _ in range(2):
        threading.Thread(target=work, daemon=True).start()
    yield


def main():
    steps = globals()["case_" + sys.argv[1]]()
    kept = next(steps)
    truth()
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "truth":
            print(json.dumps(truth()), flush=True)
        else:
            kept = next(steps, kept)
            print("done", flush=True)


main()
