"""Takes memory in one line, slowly: MIB_PER_SECOND until it is killed or its parent closes its standard input.

usage: hoards.py MIB_PER_SECOND [MOST_MIB]
"""

import sys
import threading
import time

HOARD = []


def hoard():
    # Above malloc's threshold: its pages are its own, and it is who touches them first.
    HOARD.append(bytearray(256 * 1024))


def churn():
    return [object() for _ in range(2_000)]


def main():
    speed = float(sys.argv[1])
    most = float(sys.argv[2]) if len(sys.argv) > 2 else float("inf")
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    print("ready", flush=True)
    began = time.monotonic()
    taken = 0.0
    while not ended.is_set():
        churn()
        if taken < min(most, (time.monotonic() - began) * speed):
            hoard()
            taken += 1 / 4
        else:
            time.sleep(0.005)


main()
