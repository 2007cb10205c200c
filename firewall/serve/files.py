"""Looks at files of bundles and of the policy, and says when they have changed.

By polling: notifications of the kernel do not come from network file systems, nor for the symbolic
links by which Kubernetes swaps a volume.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from firewall.bundle.store import SIGNATURE
from firewall.errors import FirewallError

log = logging.getLogger(__name__)

_PERIOD = 1.0

#: Of a file: when it was changed, its size, and which it is.
Signature = tuple[int, int, int] | None


def signature(path: Path) -> Signature:
    """Of a file, or of a bundle by its signature file, which is written last; None: not there."""
    try:
        status = (path / SIGNATURE if path.is_dir() else path).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


class Files:
    """Calls back when a file has changed and has stayed so for one period."""

    def __init__(
        self, changes: Callable[[], Mapping[Path, Callable[[], object]]], period: float = _PERIOD
    ) -> None:
        """Nothing is looked at before `start`.

        Args:
            changes: what to look at now, and what to call for each.
            period: seconds.

        """
        self._changes, self._period = changes, period
        self._stop = threading.Event()
        self._acted: dict[Path, Signature] = {}
        self._last: dict[Path, Signature] = {}
        self._thread = threading.Thread(target=self._run, name="files", daemon=True)

    def start(self) -> None:
        """Take what lies there now for what is served, and look from now on."""
        self._acted = {path: signature(path) for path in self._changes()}
        self._last = dict(self._acted)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join(timeout=5)

    def look(self) -> None:
        """Once."""
        for path, act in self._changes().items():
            now = signature(path)
            # Half-written files change again; those that stay are looked into.
            settled, self._last[path] = self._last.get(path) == now, now
            if path not in self._acted:
                self._acted[path] = now
            if now is None or not settled or now == self._acted[path]:
                continue
            self._acted[path] = now
            try:
                act()
            except FirewallError:
                continue  # said in the audit log

    def _run(self) -> None:
        while not self._stop.wait(self._period):
            try:
                self.look()
            except Exception:  # whatever it is, the next look may go well
                log.exception("files could not be looked at")
