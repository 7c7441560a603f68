"""What the C library does with memory that a picture has used."""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Pictures up to 1920x1080 and the networks' maps stay below: their memory is used again without new page faults.
_LARGE = 8 * 2**20


def return_large_blocks() -> bool:
    """Have blocks of 8 MB or more go back to the system when they are freed; in all threads of this process.

    By itself glibc raises the size from which it does so with each block that is freed, up to 32 MB, and then keeps
    64 MB in each thread's heaps: some thousand large PNG files left 1.2 GB resident where 0.4 GB were in use.

    Returns:
        False where the C library is not glibc, or ``MALLOC_MMAP_THRESHOLD_`` or ``MALLOC_TRIM_THRESHOLD_`` say
        something else.
    """
    if not sys.platform.startswith("linux") or {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & set(os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, _LARGE) and mallopt(_M_TRIM_THRESHOLD, 2 * _LARGE))
