"""The key that turns clients' names into pseudonyms."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path

from firewall.errors import ConfigError
from firewall.private_files import make_private_folder, open_private, tighten

_BYTES = 32


def pseudonym_key(path: Path) -> bytes:
    """Read the key, and create it on first use with mode 0600.

    A key file that other users may read is tightened.

    Raises:
        ConfigError: the file cannot be read or created, or does not hold a key.

    """
    try:
        if not path.exists():
            if not path.parent.exists():
                make_private_folder(path.parent)
            # Of two processes that start together, the first one to create the file wins.
            with (
                contextlib.suppress(FileExistsError),
                open_private(path, "x", encoding="ascii") as file,
            ):
                file.write(secrets.token_hex(_BYTES) + "\n")
        tighten(path)
        key = bytes.fromhex(path.read_text(encoding="utf-8-sig").strip())
    except OSError as error:
        raise ConfigError(f"key: {path} cannot be used: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"key: {path} does not hold a key in hexadecimal digits") from error
    if len(key) < 16:
        raise ConfigError(f"key: {path} has {len(key)} bytes; at least 16 are needed")
    return key
