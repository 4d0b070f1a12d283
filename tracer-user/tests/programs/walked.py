"""Stops itself, holding the GIL, below a stack of every kind of frame, after printing code address and f_lasti of each."""
import functools
import json
import os
import signal
import sys
import threading


def report():
    frame, frames = sys._getframe(1), []
    while frame is not None:
        frames.append([id(frame.f_code), frame.f_lasti])
        frame = frame.f_back
    print(json.dumps({"thread": threading.get_ident(), "frames": frames}), flush=True)


def hold():
    # One instruction calls both, so that the report is true of the stop as well; `partial` makes both calls from C.
    for action in (functools.partial(report), functools.partial(os.kill, os.getpid(), signal.SIGSTOP)):
        action()


def recursion(depth):
    return recursion(depth - 1) if depth else hold()


def generator():
    yield 1
    yield functools.reduce(lambda _left, _right: recursion(12), [1, 2])


async def coroutine():
    return sorted([1], key=lambda _: [item for item in generator()])


async def outer():
    return await coroutine()


class Body:
    exec("outer().send(None)")
