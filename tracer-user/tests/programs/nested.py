"""Stands still, holding the GIL, below a stack of every kind of frame, after printing that stack as JSON."""
import asyncio
import ctypes
import functools
import json
import sys
import threading

library = ctypes.PyDLL(None)  # unlike CDLL, its calls keep the GIL


def report(frame):
    stack = []
    while frame is not None:
        code = frame.f_code
        name = getattr(code, "co_qualname", code.co_name)
        stack.append([name, code.co_filename, frame.f_lineno, code.co_firstlineno])
        frame = frame.f_back
    print(json.dumps({"thread": threading.get_ident(), "stack": stack}), flush=True)


def hold():
    report(sys._getframe()); library.pause()  # noqa: E702 (one line, so that the report names the line of the call)


class Größe:
    def 測定(self, _left, _right):
        return [hold() for _ in
                (1,)]


def generator():
    yield 1
    yield functools.reduce(
        Größe().測定,
        [1, 2],
    )


async def coroutine():
    await asyncio.sleep(0)
    return sorted([1], key=lambda _: list(
        generator()
    ))


async def outer():
    return await coroutine()


asyncio.run(outer())
