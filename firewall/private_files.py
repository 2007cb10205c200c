"""Files and folders that only their owner may read, whatever the umask is.

Quarantined inputs, audit logs and keys tell about clients or open doors, so they are created with
mode 0600, in folders with mode 0700. What exists already with a wider mode is tightened rather than
refused: a refusal would stop a server after an upgrade. What cannot be tightened, because it
belongs to somebody else or lies on a read-only volume (a Kubernetes secret), is used with a warning
in the log. Pipes and devices (`/dev/stderr`) are used as they are.
"""

from __future__ import annotations

import logging
import os
import stat
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_FILE_MODE = 0o600
_FOLDER_MODE = 0o700
#: Permission bits of group and others.
_OTHERS = 0o077


def open_private(path: str | Path, mode: str, **options: Any) -> Any:
    """Open a file as the built-in `open` does; a regular file gets mode 0600.

    Args:
        path: the file; a symbolic link is followed.
        mode: as of `open`.
        options: more arguments of `open`, such as `encoding`.

    Raises:
        OSError: it cannot be opened.

    """
    return open(path, mode, opener=_open_tightened, **options)


def make_private_folder(path: str | Path, *, holds: str = "*") -> None:
    """Create a folder with mode 0700; missing parents are created so too.

    A folder that exists is tightened to 0700 if it is ours and everything in it matches `holds`:
    a folder that other programs use as well (`/tmp`, the root of a volume) stays as it is, and
    there the mode of the files protects their content.

    Args:
        path: the folder.
        holds: pattern (`fnmatch`) of the names that our own files in it have.

    Raises:
        OSError: it cannot be created or listed, or something else has its name.

    """
    folder = Path(path)
    for parent in reversed(folder.parents):
        if not parent.exists():
            parent.mkdir(mode=_FOLDER_MODE, exist_ok=True)
    try:
        folder.mkdir(mode=_FOLDER_MODE)
        return
    except FileExistsError:
        if not folder.is_dir():
            raise
    status = folder.stat()
    shared = status.st_mode & stat.S_ISVTX or status.st_uid != os.geteuid()
    if (
        status.st_mode & _OTHERS
        and not shared
        and all(fnmatch(name, holds) for name in os.listdir(folder))
    ):
        _narrow(folder, _FOLDER_MODE, status.st_mode)


def tighten(path: str | Path) -> None:
    """Set the mode of an existing regular file to 0600; does nothing when it does not exist."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    try:
        _tighten(descriptor, path)
    finally:
        os.close(descriptor)


def _open_tightened(path: str, flags: int) -> int:
    descriptor = os.open(path, flags, _FILE_MODE)
    _tighten(descriptor, path)
    return descriptor


def _tighten(descriptor: int, path: str | Path) -> None:
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_mode & _OTHERS:
        _narrow(descriptor, _FILE_MODE, status.st_mode, path)


def _narrow(target: int | Path, mode: int, before: int, path: str | Path = "") -> None:
    try:
        os.chmod(target, mode)
    except OSError as error:
        log.warning(
            "%s: other users may read it (mode %o), and the mode cannot be changed: %s",
            path or target, stat.S_IMODE(before), error.strerror,
        )  # fmt: skip
