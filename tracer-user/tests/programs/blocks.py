"""Keeps a hundred thousand blocks of 144 bytes, on a few hundred stacks."""
import os

kept = [None] * 100_000


def keep(number):
    for place in range(number * 100, number * 100 + 100):
        kept[place] = bytes(100)


functions = []
for number in range(300):
    text = f"def f{number}(number):\n    keep(number)\n"
    exec(text, globals())
    functions.append(globals()[f"f{number}"])
for number in range(1000):
    functions[number % 300](number)
os._exit(0)
