"""Greenlets that allocate known amounts between switches; sys.argv[1] is the folder that greenlet was installed in."""
import os, sys

sys.path.insert(0, sys.argv[1])
import greenlet

TURNS, EACH = 50, 100
kept = {"first": [], "second": [], "main": []}


def allocate_in_first():
    kept["first"].extend([bytes(200) for _ in [None] * EACH])


def allocate_in_second():
    kept["second"].extend([bytes(300) for _ in [None] * EACH])


def allocate_in_main():
    kept["main"].extend([bytes(100) for _ in [None] * EACH])


def deeper(depth, what):
    return what() if depth == 0 else deeper(depth - 1, what)


def first():
    for turn in range(TURNS):
        deeper(turn % 7, allocate_in_first)
        other.switch()


def second():
    for turn in range(TURNS):
        deeper(turn % 5, allocate_in_second)
        main.switch()


main = greenlet.getcurrent()
one, other = greenlet.greenlet(first), greenlet.greenlet(second)
for _ in range(TURNS):
    allocate_in_main()
    one.switch()
os._exit(0)
