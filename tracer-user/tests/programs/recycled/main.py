"""Floats that go to the free list in one line and come from it in another."""


def first():
    return [number + 0.5 for number in range(50)]


def second():
    return [number + 0.25 for number in range(50)]


first()
KEPT = second()
