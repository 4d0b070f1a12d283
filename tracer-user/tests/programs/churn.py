"""Allocates and frees some 50 MiB of small blocks over and over, so that arenas come and go all the time."""
print("started", flush=True)
while True:
    blocks = [bytes(number % 400) for number in range(200_000)]
    del blocks
