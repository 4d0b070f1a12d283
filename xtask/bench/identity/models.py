"""Makes pydantic instances, dataclasses and plain objects for ever, and keeps each for a while."""

import dataclasses
import heapq
import itertools
import random
import time

from pydantic import BaseModel

ORDER = itertools.count()
KEPT = []
# Most die within a window or its tail, some within the seconds that they are followed, a few later.
LIFETIMES_S = (0.001, 0.1, 3, 120)
WEIGHTS = (50, 40, 9, 1)


class Part(BaseModel):
    code: str
    weight: float
    marks: list[int]


class Item(BaseModel):
    id: int
    name: str
    parts: list[Part]


@dataclasses.dataclass
class Entry:
    key: str
    score: float
    hits: int = 0


class Slotted:
    __slots__ = ("left", "right")

    def __init__(self, left, right):
        self.left = left
        self.right = right


def item(number):
    parts = [Part(code="%08x" % (number * index), weight=index / 3, marks=[number, index]) for index in range(3)]
    return Item(id=number, name="item number %d" % number, parts=parts)


def entries(number):
    return [Entry("entry %d" % (number + index), number / (index + 1)) for index in range(8)]


def pairs(number):
    return [Slotted(number + index, str(number * index)) for index in range(8)]


def main():
    for number in itertools.count(1000):
        made = random.choice((item, entries, pairs))(number)
        (lifetime_s,) = random.choices(LIFETIMES_S, WEIGHTS)
        heapq.heappush(KEPT, (time.monotonic() + random.expovariate(1 / lifetime_s), next(ORDER), made))
        while KEPT and KEPT[0][0] < time.monotonic():
            heapq.heappop(KEPT)
        # Fields of what lives are written, as programs do.
        _, _, kept = random.choice(KEPT) if KEPT else (0, 0, made)
        if isinstance(kept, list) and isinstance(kept[0], Entry):
            kept[0].hits += 1
        if random.random() < 0.01:
            time.sleep(0.002)


main()
