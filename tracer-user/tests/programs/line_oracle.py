"""Prints what the interpreter itself says about the lines and names of many code objects, one JSON object a line.

Arguments: offsets of `state`, ASCII data and compact data in a string object.
"""
import ctypes
import importlib
import json
import sys
import types

STATE, ASCII_DATA, COMPACT_DATA = map(int, sys.argv[1:4])
MODULES = """argparse ast asyncio.base_events asyncio.events asyncio.tasks base64 bisect calendar cgitb cmd codecs
collections configparser contextlib copy csv dataclasses datetime decimal difflib dis email.message enum fractions
functools gettext glob heapq html.parser http.client http.server inspect io ipaddress json.decoder json.encoder locale
logging logging.config mailbox mimetypes multiprocessing.pool numbers optparse os pathlib pdb pickle pickletools platform
plistlib pprint pydoc queue random re selectors shlex shutil smtplib socket sqlite3 ssl stat statistics string subprocess
tarfile tempfile textwrap threading timeit tokenize traceback turtle typing unittest.case unittest.mock urllib.parse
urllib.request uuid warnings weakref xml.dom.minidom xmlrpc.client zipfile""".split()

UNICODE_SOURCE = """
class Größe:
    def 測定(self):
        return [𝒳 for 𝒳 in (1, 2)]

async def страница():
    try:
        async with x as y: pass
    finally:
        return lambda: (yield)
""" + "\n" * 400 + "def far(): return 1\n" + "x = [\n" + "a +\n" * 200 + "a]\n" + "def wide(a): return " + "a+" * 900 + "a\n"
FILE_NAMES = ["plain.py", "caf\xe9.py", "測定.py", "😀.py", "lone\udcff.py", "x" * 3000 + ".py"]

line_of = ctypes.pythonapi.PyCode_Addr2Line
line_of.argtypes = [ctypes.py_object, ctypes.c_int]
line_of.restype = ctypes.c_int


def codes(code):
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes(constant)


def raw_string(text):
    address = id(text)
    state = ctypes.c_uint32.from_address(address + STATE).value
    length = ctypes.c_uint64.from_address(address + 16).value
    ascii_only = state >> 6 & 1
    kind = state >> 2 & 7
    data = address + (ASCII_DATA if ascii_only else COMPACT_DATA)
    return {
        "state": state,
        "length": length,
        "bytes": ctypes.string_at(data, length * kind).hex(),
        "text": "".join("\ufffd" if 0xD800 <= ord(c) < 0xE000 else c for c in text),
    }


def runs(code):
    """Lines of all instructions, run-length encoded: [line, number of instructions]."""
    result = []
    for offset in range(0, len(code.co_code), 2):
        line = line_of(code, offset)
        if result and result[-1][0] == line:
            result[-1][1] += 1
        else:
            result.append([line, 1])
    return result


def roots():
    for name in MODULES:
        try:
            module = importlib.import_module(name)
            with open(module.__file__, encoding="utf-8") as file:
                yield compile(file.read(), module.__file__, "exec")
        except (ImportError, SyntaxError, OSError):
            continue
    for name in FILE_NAMES:
        yield compile(UNICODE_SOURCE, name, "exec")


for root in roots():
    for code in codes(root):
        table = code.co_linetable if sys.version_info >= (3, 10) else code.co_lnotab
        print(json.dumps({
            "name": raw_string(code.co_name),
            "qualified_name": raw_string(code.co_qualname) if sys.version_info >= (3, 11) else None,
            "file": raw_string(code.co_filename),
            "first_line": code.co_firstlineno,
            "line_table": table.hex(),
            "runs": runs(code),
        }))
