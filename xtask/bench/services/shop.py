"""What both services of the production bench do besides speaking HTTP: rows from SQLite, a cache that lives a minute, a slow leak, and the instruments.

SHOP_FOLDER is where the database and memray's results go; SHOP_LIFETIME_S, how long the cache keeps something.

A stall is a long time between two steps of one request: each step is some 20 us of work of the thread that serves, so what lies between two of them is not
waiting for a client. Pauses of the cycle collector are taken out, because a heap with a minute's cache has long ones with and without a tracer.
"""

import gc
import os
import random
import sqlite3
import time
import tracemalloc

FOLDER = os.environ["SHOP_FOLDER"]
DATABASE = os.path.join(FOLDER, "shop.sqlite3")
ROWS = 20_000
PAGE = 60
LIFETIME_S = float(os.environ.get("SHOP_LIFETIME_S", "60"))
# One request of so many keeps something for ever.
LEAK_EVERY = 50
WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliett")


def make_database():
    """A table of orders; the same each time."""
    numbers = random.Random(7)
    if os.path.exists(DATABASE):
        os.unlink(DATABASE)
    with sqlite3.connect(DATABASE) as connection:
        connection.execute(
            "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT, item TEXT, amount INTEGER, price REAL, note TEXT)"
        )
        connection.executemany(
            "INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?)",
            (
                (
                    number,
                    "customer %d" % numbers.randrange(5000),
                    numbers.choice(WORDS) + " " + numbers.choice(WORDS),
                    numbers.randrange(1, 1000),
                    numbers.random() * 1000,
                    " ".join(numbers.choices(WORDS, k=8)),
                )
                for number in range(ROWS)
            ),
        )
    connection.close()


class Steps:
    """The longest time between two steps of a request."""

    def __init__(self):
        self.last = time.perf_counter_ns()
        self.longest = 0
        self.collecting = self.last
        gc.callbacks.append(self.collected)

    def begin(self):
        self.last = time.perf_counter_ns()

    def step(self):
        now = time.perf_counter_ns()
        gap = now - self.last
        if gap > self.longest:
            self.longest = gap
        self.last = now

    def collected(self, phase, info):
        now = time.perf_counter_ns()
        if phase == "start":
            self.collecting = now
        else:
            self.last += now - self.collecting

    def take(self):
        longest, self.longest = self.longest, 0
        return longest


STEPS = Steps()
CACHE = {}
LEAKED = []


def first_row():
    return random.randrange(ROWS - PAGE)


def remember(key):
    """Keeps a session for a minute; what is older goes. Python's dictionaries keep their order, so the oldest come first."""
    now = time.monotonic()
    STEPS.begin()
    for old in list(CACHE):
        if now - CACHE[old]["at"] < LIFETIME_S:
            break
        del CACHE[old]
    STEPS.step()
    CACHE.pop(key, None)
    basket = [{"item": "%s %d" % (word, key), "amount": key + number} for number, word in enumerate(WORDS)]
    CACHE[key] = {"at": now, "basket": basket, "token": "%032x" % random.getrandbits(128)}
    STEPS.step()
    if random.randrange(LEAK_EVERY) == 0:
        LEAKED.append({"key": key, "trail": ["%d of %d" % (number, key) for number in range(10)]})
    return {"sessions": len(CACHE), "leaked": len(LEAKED), "basket": basket}


def count_words(query):
    """Work on strings: what a search without an index does."""
    STEPS.begin()
    counts = {}
    for number in range(150):
        for word in ("%s %d %s" % (query, number, WORDS[number % len(WORDS)])).split():
            counts[word.upper()] = counts.get(word.upper(), 0) + number
        STEPS.step()
    best = sorted(counts.items(), key=lambda pair: -pair[1])[:20]
    return {"query": query, "words": [{"word": word, "weight": weight} for word, weight in best]}


class Tools:
    """Tracers that live in the process; at most one is on."""

    def __init__(self):
        self.memray = None

    def switch(self, name):
        """`none`, `tracemalloc-FRAMES`, `memray` or `memray-python`."""
        tracemalloc.stop()
        if self.memray is not None:
            self.memray.__exit__(None, None, None)
            self.memray = None
        kind, _, detail = name.partition("-")
        if kind == "tracemalloc":
            tracemalloc.start(int(detail))
        elif kind == "memray":
            self.start_memray(detail == "python")

    def start_memray(self, python_allocators):
        import memray

        path = os.path.join(FOLDER, "shop.memray")
        if os.path.exists(path):
            os.unlink(path)
        destination = memray.FileDestination(path, overwrite=True, compress_on_exit=False)
        tracker = memray.Tracker(destination=destination, trace_python_allocators=python_allocators)
        tracker.__enter__()
        self.memray = tracker


TOOLS = Tools()


def control(verb, argument):
    """What the bench asks for: `pid`, `stalls` (the longest in ns, since it was asked last), `tool` NAME."""
    if verb == "tool":
        TOOLS.switch(argument)
    if verb == "stalls":
        return {"longest_ns": STEPS.take()}
    return {"pid": os.getpid()}
