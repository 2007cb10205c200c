"""The bearer token that upstream servers are shown."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from firewall.documents import read_text
from firewall.errors import ConfigError
from firewall.reloaded import Reloaded

#: Environment variable that holds the token where no file is named.
VARIABLE = "FIREWALL_UPSTREAM_TOKEN"
_TOKEN = re.compile(r"[\x21-\x7e]+\Z")


def read_token(path: Path | None, environment: Mapping[str, str]) -> Callable[[], str] | None:
    """Return what gives the token: the file, or else the environment variable; None without both.

    Raises:
        ConfigError: the file cannot be read, or there is no token in it or in the variable.

    """
    if path is not None:
        # Read again when it changes: tokens that Kubernetes projects are replaced every hour.
        return Reloaded([path], lambda: _read(path)).current
    text = environment.get(VARIABLE, "")
    if not text:
        return None
    token = _checked(text, VARIABLE)
    return lambda: token


def _read(path: Path) -> str:
    text = read_text(path, "--upstream-token-file").strip()
    return _checked(text, f"--upstream-token-file: {path}")


def _checked(text: str, where: str) -> str:
    # Anything else could end the header and begin another one.
    if not _TOKEN.match(text):
        raise ConfigError(f"{where}: expected one token of printable ASCII without spaces")
    return text
