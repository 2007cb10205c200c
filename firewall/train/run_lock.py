"""One run at a time in a folder: two would write over each other's checkpoints."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from firewall.errors import ConfigError, TrainingError


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold a folder, which is made if it is missing, until the block or the process ends.

    Raises:
        ConfigError: another run holds it.
        TrainingError: it cannot be written.

    """
    with ExitStack() as opened:
        try:
            out.mkdir(parents=True, exist_ok=True)
            file = opened.enter_context(open(out / ".lock", "a+", encoding="utf-8"))
        except OSError as error:
            raise TrainingError(f"--out: {out} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            who = file.read(20).strip() or "unknown"
            raise ConfigError(
                f"--out: another run (process {who}) is at work in {out}; wait for it, or choose "
                "another folder"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
