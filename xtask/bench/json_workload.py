"""Parses one JSON document again and again: little but allocations and frees.

usage: json_workload.py ITERATIONS FILE

Writes the seconds of processor time that one iteration took, without start-up and the first, to FILE. Traps are paid from that time, waiting
for other programs of the machine is not.
"""

import json
import sys
import time

DOCUMENT = json.dumps(
    [
        {
            "id": number,
            "name": "item number %d" % number,
            "tags": ["red", "green", "blue %d" % number],
            "price": number / 7,
            "stock": {"here": number * 3, "there": number * 1000003, "reserved": [number, -number]},
            "active": number % 3 == 0,
        }
        for number in range(7000)
    ]
)


def main(iterations, path):
    json.loads(DOCUMENT)
    started = time.process_time()
    for _ in range(iterations):
        json.loads(DOCUMENT)
    seconds = (time.process_time() - started) / iterations
    with open(path, "w") as file:
        file.write(repr(seconds))


main(int(sys.argv[1]), sys.argv[2])
