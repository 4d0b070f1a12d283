"""Allocates all the time; on SIGUSR1 prints the longest gap between two turns of its loop since the last time, in milliseconds.

With an argument, so many threads allocate as well.
"""
import os, signal, sys, threading, time

longest = 0


def work():
    kept = [None] * 1000
    number = 0
    while True:
        kept[number % 1000] = bytes(number % 400)
        number += 1


def asked(*_):
    global longest
    os.write(1, b"%.3f\n" % (longest / 1e6))
    longest = 0


signal.signal(signal.SIGUSR1, asked)
for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 0):
    threading.Thread(target=work, daemon=True).start()
kept = [None] * 1000
number = 0
before = time.perf_counter_ns()
print("ready", flush=True)
while True:
    kept[number % 1000] = bytes(number % 400)
    number += 1
    now = time.perf_counter_ns()
    if now - before > longest:
        longest = now - before
    before = time.perf_counter_ns()
