"""A value that is read from files, and read again when they change."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from firewall.errors import ConfigError

log = logging.getLogger(__name__)

#: Seconds between two looks at the files.
_PERIOD = 1.0

Value = TypeVar("Value")


class Reloaded(Generic[Value]):
    """Reads files when they have changed. Thread-safe.

    What cannot be used, such as a file that is half-written, leaves the value before in use, and is
    logged once.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        read: Callable[[], Value],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the files now.

        Args:
            paths: the files.
            read: makes a value of them; raises a `ConfigError` that names what is wrong.
            clock: seconds, monotonic.

        Raises:
            ConfigError: they cannot be used.

        """
        self._paths, self._read, self._clock = tuple(paths), read, clock
        self._lock = threading.Lock()
        self._seen = self._stamps()
        self._looked = clock()
        self._value = read()

    def current(self) -> Value:
        """The newest value that could be read. Never raises."""
        now = self._clock()
        if now - self._looked >= _PERIOD:
            with self._lock:
                if now - self._looked >= _PERIOD:
                    self._looked = now
                    self._look()
        return self._value

    def _look(self) -> None:
        seen = self._stamps()
        if seen == self._seen:
            return
        # Also after a failure: the same bad file is reported once.
        self._seen = seen
        try:
            self._value = self._read()
        except (ConfigError, OSError) as error:
            log.error("%s; what was read before stays in use", error)
        else:
            log.info("%s: read again", ", ".join(map(str, self._paths)))

    def _stamps(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_stamp(path) for path in self._paths)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
