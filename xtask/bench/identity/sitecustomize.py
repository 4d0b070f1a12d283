"""Puts the reuse oracle into every interpreter that starts with this folder in PYTHONPATH: ORACLE_LIBRARY is the library, ORACLE_FOLDER where tables go, one file a process."""

import ctypes
import os

LIBRARY = ctypes.PyDLL(os.environ["ORACLE_LIBRARY"])


def install():
    path = os.path.join(os.environ["ORACLE_FOLDER"], "%d.oracle" % os.getpid())
    if LIBRARY.install(os.fsencode(path)) != 0:
        raise OSError("cannot install the reuse oracle at %r" % path)


install()
os.register_at_fork(after_in_child=install)
