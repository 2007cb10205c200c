"""The key by which clients get their pseudonyms."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from firewall.errors import ConfigError

_BYTES = 32


def pseudonym_key(path: Path) -> bytes:
    """The key in a file; made, and readable by the user alone, on first use.

    Raises:
        ConfigError: the file cannot be read or made, or holds no key.

    """
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Of two processes that start together, one key wins.
            with contextlib.suppress(FileExistsError):
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "w") as file:
                    file.write(secrets.token_hex(_BYTES) + "\n")
        key = bytes.fromhex(path.read_text().strip())
    except OSError as error:
        raise ConfigError(f"key: {path} cannot be used: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"key: {path} holds no key in hexadecimal digits") from error
    if len(key) < 16:
        raise ConfigError(f"key: {path} has {len(key)} bytes; 16 are the least")
    return key
