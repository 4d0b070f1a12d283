"""A service for gunicorn: each request keeps one block, and says by whom, and how long after that worker's fork."""
import os, time

KEPT = []
BORN = time.monotonic_ns()


def born():
    global BORN
    BORN = time.monotonic_ns()


os.register_at_fork(after_in_child=born)


def keep():
    return bytes(100_000)


def application(environment, start_response):
    age = time.monotonic_ns() - BORN
    KEPT.append(keep())
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d %d\n" % (os.getpid(), age)]
