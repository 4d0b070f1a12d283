"""A worker that leaks: a cache keyed by something that never comes back. Runs until it is ended."""

import time

CACHE = {}


class Answer:
    def __init__(self, number):
        self.number = number
        self.text = f"answer to request {number}"


def remember(key, answer):
    CACHE[key] = answer


def handle(number):
    answer = Answer(number)
    # The mistake: the time is part of the key, so nothing is ever found again and everything is kept.
    remember((number % 10, time.monotonic_ns()), answer)
    return answer.text.upper()


def main():
    number = 0
    while True:
        for _ in range(200):
            handle(number)
            number += 1
        time.sleep(0.01)


main()
