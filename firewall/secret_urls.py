"""URLs with passwords, kept off the command line.

Everyone on a machine can read the command lines of its processes (`ps`), and shells keep them in
their history. So a URL that has a password comes from a file or from an environment variable.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from firewall.errors import ConfigError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
#: `user:password@` or `:password@` after `scheme://`. The password may hold `/` and `?`, which
#: SQLAlchemy accepts; the user may hold `@`, which redis accepts. A path (`sqlite:///a:b@c`) has
#: no user.
_PASSWORD = re.compile(r"[^/]*?:[^@]+@")
#: The same as a parameter, which psycopg and redis accept.
_PARAMETER = re.compile(r"[?&](password|passwd|pwd)=", re.IGNORECASE)
#: Bytes of a file with a URL.
_MAX_BYTES = 8192


def is_url(text: str) -> bool:
    """Whether a value is a URL and no path: only what begins with `scheme://` is."""
    return bool(_SCHEME.match(text))


def resolve_url(value: str, *, flag: str, variable: str) -> str:
    """Return the URL that a command-line value stands for.

    Args:
        value: `@/path/to/file` reads the URL from a file, `@` alone or an empty value from the
            environment variable; anything else is the URL itself (or a path), without a password.
        flag: option or argument that has the value, for errors.
        variable: name of the environment variable.

    Raises:
        ConfigError: the value holds a password, or the file or the variable has no URL.

    """
    if value in ("", "@"):
        url = os.environ.get(variable, "").strip()
        if not url:
            raise ConfigError(f"{flag}: the environment variable {variable} is not set")
        return url
    if value.startswith("@"):
        return _read(Path(value[1:]), flag)
    if has_password(value):
        raise ConfigError(
            f"{flag}: a password on the command line can be read by every user of this machine; "
            f"put the URL into the environment variable {variable} and give {flag} as '@', or put "
            "it into a file that only you can read and give '@/path/to/file'"
        )
    return value


def has_password(url: str) -> bool:
    """Whether a URL carries a password."""
    _, separator, rest = url.partition("://")
    return bool(separator) and bool(_PASSWORD.match(rest) or _PARAMETER.search(rest))


def without_password(url: str) -> str:
    """Hide user, password and parameters of a URL, for errors and logs."""
    scheme, separator, rest = url.partition("://")
    if not separator or rest.startswith("/"):
        return url
    _, user, host = rest.rpartition("@")
    return f"{scheme}{separator}{'***@' if user else ''}{host.partition('?')[0]}"


def _read(path: Path, flag: str) -> str:
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_BYTES + 1).decode("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{flag}: {path} cannot be read") from error
    if not text or len(text) > _MAX_BYTES or not text.isprintable():
        raise ConfigError(f"{flag}: {path}: expected one line with a URL")
    return text
