"""Takes much memory in a known shape, too fast for every block to be watched: what lines hold at the peak is counted by tests in exact mode too."""
import sys


def rows(number):
    return [{"key": key * 1000, "text": "row %d" % key} for key in range(number)]


def names(number):
    return ["name %d" % key for key in range(number)]


def floats(number):
    return [key * 0.5 for key in range(number)]


def buffers(number):
    return [bytearray(20_000) for _ in range(number)]


def main():
    rounds = int(sys.argv[1])
    for _ in range(rounds):
        names(50_000)
    kept = rows(100_000), floats(300_000), buffers(200)
    for _ in range(rounds * 10):
        names(5_000)
    del kept


main()
