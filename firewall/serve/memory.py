"""Memory that the process no longer needs goes back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os

#: mallopt's parameters (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: Bytes of a block from which on it is given back at once, and of free memory behind the last one
#: that is kept. A request's image is smaller than the one, weights and bundles are larger.
_MMAP, _TRIM = 1 << 20, 256 << 10


def settle() -> None:
    """Have glibc keep to bounds. By itself it raises both to what the largest block was that was
    ever freed, here a part of a bundle, and gives hardly anything back from then on.

    What an operator has said about malloc in the environment stays as it is, and elsewhere than on
    glibc nothing is done.
    """
    if any(key.startswith("MALLOC_") or key == "GLIBC_TUNABLES" for key in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, _MMAP)
        libc.mallopt(_TRIM_THRESHOLD, _TRIM)


def give_back() -> None:
    """Give the system what is free within the allocator's own (glibc: malloc_trim). Bundles are
    read whole before they are checked, and nothing of them is needed once their graphs are open.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
