"""Memory that the process no longer needs."""

from __future__ import annotations

import contextlib
import ctypes
import gc


def give_back() -> None:
    """Give the system what is free within the allocator's own (glibc: malloc_trim). Bundles are
    read whole before they are checked, and nothing of them is needed once their graphs are open.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
