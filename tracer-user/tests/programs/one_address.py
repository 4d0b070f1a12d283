"""Makes, calls and drops two hundred functions in one module; each keeps one block."""
import os

kept = [None] * 200
for number in range(200):
    exec(f"def made_{number}():\n" + "    x = 1\n" * (number % 10) + f"    kept[{number}] = bytes({600 + number})\nmade_{number}()\ndel made_{number}")
os._exit(0)
