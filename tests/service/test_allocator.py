"""Memory that large pictures used goes back to the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets what glibc does")

# Blocks of 16 MB, as Pillow takes them, in a thread's heap; one small block after them keeps glibc from trimming it.
SCRIPT = """
import ctypes, pathlib, sys, threading
from service.allocator import return_large_blocks
print(return_large_blocks() if sys.argv[1] == "set" else "as it is")
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.malloc.argtypes = [ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def work():
    for _ in range(3):
        blocks = [libc.malloc(16 << 20) for _ in range(12)]
        for block in blocks:
            libc.memset(block, 1, 16 << 20)
        kept.append(libc.malloc(4000))
        for block in blocks:
            libc.free(block)

kept = []
thread = threading.Thread(target=work)
thread.start()
thread.join()
status = pathlib.Path("/proc/self/status").read_text()
print(int(status.split("VmRSS:")[1].split()[0]) // 1024)
"""


def resident_mb(how: str, **environment: str) -> tuple[str, int]:
    told, size = subprocess.check_output(
        [sys.executable, "-c", SCRIPT, how], text=True, env={"PATH": "", **environment}
    ).split("\n")[:2]
    return told, int(size)


def test_freed_pictures_do_not_stay_resident() -> None:
    told, size = resident_mb("set")
    assert told == "True"
    assert size < resident_mb("as it is")[1] - 50


def test_an_operators_choice_stands() -> None:
    assert resident_mb("set", MALLOC_TRIM_THRESHOLD_="134217728")[0] == "False"
