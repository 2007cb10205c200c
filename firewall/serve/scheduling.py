"""How the operating system chooses among our threads."""

from __future__ import annotations

import contextlib
import os


def interrupt_nobody() -> None:
    """Let this thread, when it is woken, wait until the one that runs on its core sleeps or has had
    its time (Linux: SCHED_BATCH, sched(7)).

    For threads that wake each other for every request: on a core that they share, one that is
    woken would stop the other at once, have little to do, and stop again. Where that cannot be had,
    or somebody has chosen another policy for us, nothing is changed.
    """
    if not hasattr(os, "SCHED_BATCH"):
        return
    with contextlib.suppress(OSError):
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
