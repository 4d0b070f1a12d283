"""Stacks of every shape, each at the bottom of it a `keep_` function that holds on to a block of its own size."""
import asyncio, functools, os, re, sys

kept = []


def keep(size):
    kept.append(bytes(size))


def recursive(depth):
    if depth == 0:
        keep(2000)
    else:
        recursive(depth - 1)


def a_generator():
    keep(2100)
    yield 1


def outer_generator():
    yield from a_generator()


async def a_coroutine():
    keep(2200)


async def outer_coroutine():
    await a_coroutine()


async def an_async_generator():
    keep(2250)
    yield 1


async def drives():
    await outer_coroutine()
    async for _ in an_async_generator():
        pass


def a_key(value):
    if value == 2:
        keep(2300)
    return value


def a_callback(match):
    keep(2400)
    return ""


a_lambda = lambda: keep(2500)


def naïve_日本語_𐐷():
    keep(2600)


class Klasse:
    def method(self):
        keep(2700)

    @property
    def a_property(self):
        keep(2800)

    def __eq__(self, other):
        keep(2900)
        return True

    def __del__(self):
        keep(3000)


def a_comprehension():
    return [keep(3100) for _ in range(1)]


def decorated(function):
    @functools.wraps(function)
    def wrapper(*arguments):
        return function(*arguments)

    return wrapper


@decorated
def a_decorated():
    keep(3200)


sys.setrecursionlimit(3000)
recursive(20)
recursive(1000)
list(outer_generator())
asyncio.run(drives())
sorted([3, 2, 1], key=a_key)
re.sub("b", a_callback, "abc")
a_lambda()
naïve_日本語_𐐷()
item = Klasse()
item.method()
item.a_property
other = Klasse()
[item].index(other)
del item
a_comprehension()
a_decorated()
exec(compile("def made():\n    keep(3300)\nmade()", "made up", "exec"))
functools.reduce(lambda left, right: keep(3400), [1, 2])
max([1], key=functools.partial(lambda size, value: keep(size) or value, 3500))
os._exit(0)
