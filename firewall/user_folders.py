"""Folders of the user: for keys, and for what is made once and kept."""

from __future__ import annotations

import os
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
    return Path(named) if named else _of_home(user_config_path("firewall"), CONFIG_DIR, "keys")


def cache_dir() -> Path:
    """Folder of what can be made again: `$FIREWALL_CACHE_DIR`, or the platform's cache folder.

    Raises:
        ConfigError: the variable is not set, and this user has no home.

    """
    named = os.environ.get(CACHE_DIR)
    if named:
        return Path(named)
    return _of_home(user_cache_path("firewall"), CACHE_DIR, "the default bundle")


def _of_home(path: Path, variable: str, what: str) -> Path:
    # Without HOME and without an entry of the user, `~` stays what it is: a folder of that name
    # would be made wherever the command runs.
    if not path.is_absolute():
        raise ConfigError(f"this user has no home folder; set {variable} to a folder for {what}")
    return path
