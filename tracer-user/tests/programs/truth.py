"""Runs a generated program to where it holds still, and says, as tracemalloc sees it, how much memory each of its lines holds.

usage: python -X tracemalloc=N truth.py MODE SWITCH LIBRARY FOLDER

MODE is one of
    hold    with N = 0: print READY, then wait for a line on standard input. This is the run that alloctrace watches.
    plain   with N = 1: print READY and a JSON object {"FILE:LINE": [bytes, count]}.
    exact   the same, but with tracemalloc's relabelling off.
    switch  with N = 4321: print what SWITCH is for this interpreter (no other arguments).

Relabelling: CPython keeps some freed objects on free lists and hands them out again without asking the allocator. tracemalloc is told of that by
`_Py_NewReference` and gives the block to the new line; whoever watches the allocator cannot know. Only that part of tracemalloc looks at its `tracing` flag;
the allocator hooks do not. So with the flag down after the hooks are in, tracemalloc is a pure allocator tracer. SWITCH says where the flag lies.
From 3.13.2 on the hooks look at the flag, too; but there tracemalloc is told of new references as a `PyRefTracer`, which can be taken away.
Frames of 3.8 to 3.10 are recycled in one more way, which takes a hook in C: LIBRARY, see frame_list.c.

All modes do the same until READY, so that the program finds the same free lists and the same interned strings in each.
"""

import ctypes
import gc
import signal
import sys
from _tracemalloc import _get_traces

FRAMES_TO_SEARCH_FOR = 4321


def flag_at(switch):
    symbol, offset = switch.split("+")
    base = ctypes.addressof(ctypes.c_char.in_dll(ctypes.pythonapi, symbol))
    return ctypes.c_int.from_address(base + int(offset))


def ignore_references(mode):
    """Takes tracemalloc's reference tracer away in mode `exact`; false where it has none, which is before 3.13.2."""
    try:
        get, take_away = ctypes.pythonapi.PyRefTracer_GetTracer, ctypes.pythonapi.PyRefTracer_SetTracer
    except AttributeError:
        return False
    get.restype = ctypes.c_void_p
    if not get(None):
        return False
    if mode == "exact":
        take_away(None, None)
    return True


def find_switch():
    """Symbol and offset of the `tracing` flag: beside the number of frames, which nobody else sets to ours."""
    import os
    import struct
    import tracemalloc

    if sys.version_info < (3, 12):
        return "_Py_tracemalloc_config+4"
    base = ctypes.addressof(ctypes.c_char.in_dll(ctypes.pythonapi, "_PyRuntime"))
    with open("/proc/self/mem", "rb") as memory:
        runtime = os.pread(memory.fileno(), 1 << 20, base)
    wanted = struct.pack("iii", 1, 1, FRAMES_TO_SEARCH_FOR)  # initialised, tracing, frames
    found = runtime.find(wanted)
    if found < 0:
        raise SystemExit("tracemalloc's settings are not in _PyRuntime; this version keeps them elsewhere, find out where")
    switch = "_PyRuntime+%d" % (found + 4)
    flag_at(switch).value = 0
    if tracemalloc.is_tracing():
        raise SystemExit("the flag found in _PyRuntime is not tracemalloc's; this version keeps it elsewhere, find out where")
    flag_at(switch).value = 1
    return switch


def by_line(traces, folder):
    """Bytes and blocks of each line of the program's files. Small blocks count as what pymalloc spends on them: a multiple of 16."""
    import os

    lines = {}
    for trace in traces:
        domain, size, frames = trace[:3]
        path, line = frames[0]
        if domain != 0 or os.path.dirname(path) != folder:
            continue
        spent = (size + 15) // 16 * 16 if size <= 512 else size
        total = lines.setdefault("%s:%d" % (os.path.basename(path), line), [0, 0])
        total[0] += spent
        total[1] += 1
    return lines


def settle():
    """Make the run repeatable. pymalloc's own tables grow here and not in the program: they come from malloc, which tracemalloc does not see inside of
    pymalloc. Threads run one at a time, until they block."""
    blocks = [bytes(470) for _ in range(33000)]
    del blocks
    sys.setswitchinterval(1000)


def empty_free_list_of_numbers():
    """From 3.14 on freed numbers are kept, up to 100 (Include/internal/pycore_freelist_state.h). The modes have freed different ones so far; what the
    program takes from that list would stay with this file's lines in one mode and not in the other. Garbage is collected at the same moments, too."""
    gc.collect()
    return [1 << 20 | number for number in range(300)]


def run(mode, switch, library, folder):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path.insert(0, folder)
    flag = flag_at(switch)
    hook = ctypes.PyDLL(library)
    (hook.install if mode == "exact" and sys.version_info < (3, 11) else hook.leave)()
    settle()
    flag.value = ignore_references(mode) or RELABEL[mode]
    held = empty_free_list_of_numbers()
    import main

    sys.stdout.write("READY\n")
    sys.stdout.flush()
    if mode == "hold":
        sys.stdin.readline()
        return
    lists = [[] for _ in range(200 * (1 - flag.value))]  # none is left on the free list for _get_traces to re-label
    flag.value = 1
    traces = _get_traces()
    import json

    print(json.dumps(by_line(traces, folder), indent=0, sort_keys=True, ensure_ascii=False))
    del main, lists, held


RELABEL = {"hold": 0, "exact": 0, "plain": 1}

if __name__ == "__main__":
    if sys.argv[1] == "switch":
        print(find_switch())
    else:
        run(*sys.argv[1:])
