"""Why a JSON file takes many times its size: parses one and holds still with the result."""

import io
import json

ORDERS = 20_000


def make_text():
    """A table of orders as a web service would send it."""
    orders = [
        {"id": n, "customer": n % 997, "paid": n % 3 == 0, "lines": [[n, 1], [n + 1, 2]]}
        for n in range(ORDERS)
    ]
    return json.dumps(orders)


def parse(text):
    return json.load(io.StringIO(text))


def main():
    text = make_text()
    orders = parse(text)
    print(f"{len(text):,} bytes of JSON, {len(orders):,} orders")


main()
