"""Work with a known number of blocks, for so many seconds: requests of 20 buffers each, and some work that takes no memory. Prints how many."""
import sys, time, zlib

TEXT = bytes(300_000)


def buffers():
    return [bytearray(5_000) for _ in range(20)]


def main():
    print("ready", flush=True)
    sys.stdin.readline()
    requests, end = 0, time.monotonic() + float(sys.argv[1])
    while time.monotonic() < end:
        buffers()
        zlib.crc32(TEXT)
        requests += 1
    print(requests, flush=True)
    sys.stdin.readline()


main()
