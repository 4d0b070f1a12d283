"""Makes two interpreters with allocators of their own (3.12+), lets them allocate, and stands still."""
import sys
import time

try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters

alive = [interpreters.create(), interpreters.create()]  # in 3.12 they end with the last reference to their id
for interpreter in alive:
    interpreters.run_string(interpreter, "import builtins; builtins.keep = [bytes(n % 400) for n in range(20000)]")
print("still", flush=True)
time.sleep(3600)
