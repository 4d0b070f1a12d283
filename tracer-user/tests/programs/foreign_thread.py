"""A thread that Python did not make runs Python code: pthread_create with a callback of ctypes, which calls PyGILState_Ensure."""
import ctypes

kept = []
libc = ctypes.CDLL(None)
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)


def in_the_foreign_thread(number):
    kept.extend(bytes(200) for _ in range(number))


@CALLBACK
def callback(_argument):
    in_the_foreign_thread(5000)
    return None


def run():
    thread = ctypes.c_ulong()
    assert libc.pthread_create(ctypes.byref(thread), None, callback, None) == 0
    assert libc.pthread_join(thread, None) == 0


def in_the_main_thread():
    kept.extend(bytes(100) for _ in range(3000))


for _ in range(3):
    run()
in_the_main_thread()
