"""Fills the heap with about argv[1] MiB of mixed small blocks, a third of them freed again, then stands still.

It stands still inside `sys._debugmallocstats`: its stderr is a pipe with room for a few lines of the table, which is
counted in full before it is written. So the table, once the reader lets it pass, is of the moment of the stillness.
"""
import fcntl
import os
import sys

megabytes = int(sys.argv[1])
keep = []
sizes = [0, 8, 20, 40, 80, 150, 300, 450]
blocks = megabytes * 1024 * 1024 // 170
temporary = [bytes(100) for _ in range(blocks // 2)]
for number in range(blocks):
    keep.append(bytes(sizes[number % len(sizes)] + number % 7))
del temporary
for number in range(0, blocks, 3):
    keep[number] = None

F_SETPIPE_SZ = 1031
capacity = fcntl.fcntl(2, F_SETPIPE_SZ, 4096)
print("still", flush=True)
os.write(2, b" " * (capacity - 200) + b"\n")
sys._debugmallocstats()
