"""Parses JSON documents for ever and keeps each for a while: some for milliseconds, some for minutes."""

import heapq
import itertools
import json
import random
import time

ORDER = itertools.count()
KEPT = []
# Most die within a window or its tail, some within the seconds that they are followed, a few later.
LIFETIMES_S = (0.001, 0.1, 3, 120)
WEIGHTS = (50, 40, 9, 1)


def document(number):
    return json.dumps(
        {
            "id": number,
            "name": "item number %d" % number,
            "tags": ["red", "green", "blue %d" % number],
            "price": number / 7,
            "stock": {"here": number * 3, "there": number * 1000003, "reserved": [number, -number]},
            "parts": [{"part": index, "weight": index / 3, "code": "%08x" % (number * index)} for index in range(20)],
        }
    )


def main():
    documents = [document(number) for number in range(1000)]
    while True:
        parsed = json.loads(random.choice(documents))
        (lifetime_s,) = random.choices(LIFETIMES_S, WEIGHTS)
        heapq.heappush(KEPT, (time.monotonic() + random.expovariate(1 / lifetime_s), next(ORDER), parsed))
        while KEPT and KEPT[0][0] < time.monotonic():
            heapq.heappop(KEPT)
        # A pause now and then, as a program has that waits for its input.
        if random.random() < 0.01:
            time.sleep(0.002)


main()
