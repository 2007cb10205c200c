"""Errors of the system and of databases, as one sentence for a person."""

from __future__ import annotations

import errno
import os
import sys

_ADVICE = {
    errno.EACCES: "this user may not; change the permissions, or the user",
    errno.EPERM: "this user may not; change the permissions, or the user",
    errno.EROFS: "the file system is read-only; name a place that can be written",
    errno.ENOSPC: "free some space, or name a place with more",
    errno.EDQUOT: "free some space, or name a place with more",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the system's limit of open files",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "name a file",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOMEM: "there is not enough memory",
    errno.ECONNREFUSED: "is the server running?",
    errno.EADDRINUSE: "stop what uses the port, or name another one",
}


def os_error(error: OSError) -> str:
    """Say what happened, where, and what helps."""
    what = os.strerror(error.errno) if error.errno is not None else str(error)
    places = [os.fsdecode(one) for one in (error.filename, error.filename2)
              if isinstance(one, str | bytes)]  # fmt: skip
    where = f"{' and '.join(places)}: " if places else ""
    advice = _ADVICE.get(error.errno or 0)
    return f"{where}{what}" + (f"; {advice}" if advice else "")


def database_error(error: Exception) -> str | None:
    """Say what a database answered, without statement and parameters; None for other errors."""
    sqlalchemy = sys.modules.get("sqlalchemy.exc")
    if sqlalchemy is None or not isinstance(error, sqlalchemy.SQLAlchemyError):
        return None
    cause = getattr(error, "orig", None) or error
    lines = str(cause).strip().splitlines()
    return f"database: {lines[0] if lines else type(cause).__name__}"
