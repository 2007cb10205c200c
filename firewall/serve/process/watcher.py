"""Watch the files of bundles and of the policy, and act when they have changed.

Files are polled: notifications of the kernel do not come from network file systems, nor for the
symbolic links by which Kubernetes swaps a volume.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from watchfiles import watch

from firewall.bundle.store import SIGNATURE
from firewall.errors import FirewallError

log = logging.getLogger(__name__)

#: Milliseconds between two polls, and at most between two looks.
_POLL, _LOOK = 500, 2000

#: Of a file: modification time, size and inode; None where there is none.
Signature = tuple[int, int, int] | None


def signature(path: Path) -> Signature:
    """Of a file, or of a bundle by its signature file, which is written last."""
    try:
        status = (path / SIGNATURE if path.is_dir() else path).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


class FileWatcher:
    """Calls back when a file has changed and has come to rest."""

    def __init__(self, targets: Callable[[], Mapping[Path, Callable[[], object]]]) -> None:
        """Watch nothing before `start`.

        Args:
            targets: the paths to watch now, and what to call for each.

        """
        self._targets = targets
        self._stop = threading.Event()
        self._acted: dict[Path, Signature] = {}
        self._thread = threading.Thread(target=self._run, name="files", daemon=True)

    def start(self) -> None:
        """Take the files as they are for what is served, and watch from now on."""
        self._acted = {path: signature(path) for path in self._targets()}
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._stop.set()
        self._thread.join(timeout=5)

    def look(self) -> None:
        """Act on every file that has changed since it was last acted on."""
        for path, act in self._targets().items():
            now = signature(path)
            if path not in self._acted:
                self._acted[path] = now
            if now is None or now == self._acted[path]:
                continue
            self._acted[path] = now
            try:
                act()
            except FirewallError:
                continue  # the audit log says why

    def _run(self) -> None:
        while not self._stop.is_set():
            folders = {path.parent for path in self._targets()} | {
                path for path in self._targets() if path.is_dir()
            }
            # Returns when the files have been at rest for a moment, and from time to time: the set
            # of folders changes with what is served.
            changes = watch(
                *sorted(folder for folder in folders if folder.is_dir()),
                watch_filter=None,
                debounce=_LOOK,
                step=_POLL,
                rust_timeout=_LOOK,
                yield_on_timeout=True,
                stop_event=self._stop,
                force_polling=True,
                poll_delay_ms=_POLL,
                recursive=False,
                raise_interrupt=False,
            )
            try:
                next(changes, None)
                self.look()
            except Exception:  # the next look may go well
                log.exception("failed to look at the files")
                self._stop.wait(_LOOK / 1000)
            finally:
                changes.close()
