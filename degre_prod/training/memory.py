"""What the C library does with freed memory."""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from typing import Final

# <malloc.h>: parameters of mallopt
_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3


@cache
def keep_freed_memory() -> bool:
    """Let this process keep freed memory for its next tensors, for good; False where the C library isn't glibc.

    By default glibc returns every large block to the kernel when it is freed and takes it anew a moment later, zeroed page
    by page. Mining and training make and drop such blocks thousands of times a second.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    largest = 2**31 - 1
    wanted = ((_M_MMAP_THRESHOLD, 2**30), (_M_TRIM_THRESHOLD, largest), (_M_TOP_PAD, 64 * 2**20))
    return all(libc.mallopt(parameter, value) == 1 for parameter, value in wanted)
