"""Prints addresses of objects that it keeps, that it has freed, and that it has freed and made others at; waits for a line between.

Each line is `kind kept ADDRESSES`, and so on; an empty line when a round is over."""

import sys


class Slotted:
    __slots__ = ("left", "right", "third")

    def __init__(self, number):
        self.left = number * 1000003
        self.right = str(number)
        self.third = None


MAKERS = {
    "str": lambda number: "a string with number %d" % number,
    "bytes": lambda number: b"some bytes with number %d" % number,
    "int": lambda number: number * 1000000007 + 10**20,
    "float": lambda number: number / 7,
    "tuple": lambda number: tuple(range(number * 1000, number * 1000 + 15)) + (number,) * 15,
    "dict": lambda number: {"number": number, number: "number"},
    "list": lambda number: [number, str(number)],
    "slotted": Slotted,
}
COUNT = 400


def say(name, state, objects):
    print(name, state, *["%x" % address for address in objects], flush=True)


def written_to(name, kept):
    """Objects live, but are not left alone."""
    for number, value in enumerate(kept):
        if name == "dict":
            value["later"] = number
            value["number"] = -number
        elif name == "list":
            value.extend(range(40))
        elif name == "slotted":
            value.third = str(number)


def main():
    kept, freed, places = {}, {}, {}
    for name, make in MAKERS.items():
        objects = [make(number) for number in range(COUNT)]
        kept[name], freed[name] = objects[::2], objects[1::2]
        places[name] = [id(value) for value in freed[name]]
        del objects
    for name in MAKERS:
        say(name, "kept", [id(value) for value in kept[name]])
        say(name, "later_freed", places[name])
    print(flush=True)
    sys.stdin.readline()
    values = []
    for name, make in MAKERS.items():
        freed[name].clear()
        # As many others of the same type, at the same addresses for the most part.
        others = [make(number + 5000) for number in range(COUNT // 4)]
        taken = {id(value) for value in others}
        say(name, "freed", [place for place in places[name] if place not in taken])
        say(name, "reused", [place for place in places[name] if place in taken])
        values.append(others)
        written_to(name, kept[name])
    print(flush=True)
    sys.stdin.readline()


main()
