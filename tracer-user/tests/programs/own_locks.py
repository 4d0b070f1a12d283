"""Interpreters beside the main one (from 3.12 on each with a lock of its own) allocate known amounts: in turn, and all at once."""
import os, threading

try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters

SOURCE = """
import builtins

def {name}(number):
    builtins.kept = kept = []
    for _ in range(number):
        kept.append(bytes(200))

{name}(20000)
"""


def run(interpreter, name):
    interpreters.run_string(interpreter, SOURCE.format(name=name))


def in_main(number):
    kept = []
    for _ in range(number):
        kept.append(bytes(100))
    return kept


alive = [interpreters.create() for _ in range(3)]
run(alive[0], "in_first")
threads = [threading.Thread(target=run, args=pair) for pair in zip(alive[1:], ["in_second", "in_third"])]
for thread in threads:
    thread.start()
kept = in_main(30000)
for thread in threads:
    thread.join()
# While all of them are there.
os._exit(0)
