"""A service for gunicorn and uvicorn: each request keeps one block, and says by whom, and how long after that worker's start."""
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


async def asgi(scope, receive, send):
    age = time.monotonic_ns() - BORN
    KEPT.append(keep())
    body = b"%d %d\n" % (os.getpid(), age)
    # With a length: without one some servers send it in chunks.
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
