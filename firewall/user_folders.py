"""Folders of the user: for keys, and for what is made once and kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from platformdirs import user_cache_path, user_config_path

from firewall.errors import ConfigError

#: Environment variables that name them.
CONFIG_DIR, CACHE_DIR = "FIREWALL_CONFIG_DIR", "FIREWALL_CACHE_DIR"


def config_dir() -> Path:
    """Folder of the user's keys: `$FIREWALL_CONFIG_DIR`, or the platform's configuration folder.

    Raises:
        ConfigError: the variable is not set, and this user has no home.

    """
    named = os.environ.get(CONFIG_DIR)
    return Path(named) if named else _of_home(user_config_path, CONFIG_DIR, "keys")


def cache_dir() -> Path:
    """Folder of what can be made again: `$FIREWALL_CACHE_DIR`, or the platform's cache folder.

    Raises:
        ConfigError: the variable is not set, and this user has no home.

    """
    named = os.environ.get(CACHE_DIR)
    if named:
        return Path(named)
    return _of_home(user_cache_path, CACHE_DIR, "the default bundle")


def _of_home(find: Callable[[str], Path], variable: str, what: str) -> Path:
    """A folder of the user's home; neither HOME nor an entry of the user may say where that is."""
    none = ConfigError(f"this user has no home folder; set {variable} to a folder for {what}")
    try:
        path = find("firewall")
    except RuntimeError as error:
        raise none from error
    # Or `~` stays what it is, and a folder of that name would be made wherever the command runs.
    if not path.is_absolute():
        raise none
    return path
