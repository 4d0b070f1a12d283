"""Allocates known amounts in functions named after them, and leaves at once, everything still there."""
import array, ctypes, os, sys

NUMBER = 1000
kept = [None] * (20 * NUMBER)
place = iter(range(20 * NUMBER))
# From 3.14 on numbers, ranges and their iterators go to free lists: these do, and those of the functions are taken from there.
[_ for _ in range(5000, 5010)]


def bytes_of_95():
    for number in range(NUMBER):
        kept[number] = bytes(95)


def bytes_of_479():
    """The largest that pymalloc serves: 512 with their header."""
    for number in range(NUMBER, 2 * NUMBER):
        kept[number] = bytes(479)


def bytes_of_480():
    """One byte more goes to malloc."""
    for number in range(2 * NUMBER, 3 * NUMBER):
        kept[number] = bytes(480)


def bytearrays_of_1000():
    for number in range(3 * NUMBER, 4 * NUMBER):
        kept[number] = bytearray(1000)


def lists_of_100():
    for number in range(4 * NUMBER, 5 * NUMBER):
        kept[number] = [None] * 100


def half_dropped():
    for number in range(5 * NUMBER, 6 * NUMBER):
        kept[number] = bytes(200)
    for number in range(5 * NUMBER, 6 * NUMBER, 2):
        kept[number] = None


def peak_then_nothing():
    block = bytes(30_000_000)
    del block


def dropped_at_once():
    for number in range(NUMBER):
        bytes(300)


bytes_of_95()
bytes_of_479()
bytes_of_480()
bytearrays_of_1000()
lists_of_100()
half_dropped()
peak_then_nothing()
dropped_at_once()
os._exit(0)
