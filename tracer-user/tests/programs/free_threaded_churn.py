"""Eight threads that allocate and free without an end, without a lock."""
import threading


def churn(number):
    while True:
        blocks = [bytes(100 + number) for _ in range(50)]
        del blocks


for number in range(8):
    threading.Thread(target=churn, args=(number,), daemon=True).start()
print("ready", flush=True)
threading.Event().wait()
