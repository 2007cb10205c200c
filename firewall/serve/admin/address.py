"""Where the admin socket is. Imported by the command line as well, so it imports no server."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from firewall.errors import ConfigError


def default_socket(grpc_port: int) -> Path:
    """Where the admin socket of the server on a gRPC port is, when nobody says otherwise."""
    return runtime_folder() / f"admin-{grpc_port}.sock"


def runtime_folder() -> Path:
    """Folder for sockets of this user: `FIREWALL_RUNTIME_DIR`, `XDG_RUNTIME_DIR`, or one beneath
    the temporary folder.
    """
    if named := os.environ.get("FIREWALL_RUNTIME_DIR"):
        return Path(named)
    if base := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(base) / "robustness-firewall"
    return Path(tempfile.gettempdir()) / f"robustness-firewall-{os.getuid()}"


def make_socket_folder(path: Path) -> None:
    """Make the folder of a socket, for this user alone.

    Raises:
        ConfigError: it cannot be made, or belongs to somebody else.

    """
    folder = path.parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise ConfigError(f"--admin-socket: {folder} cannot be made: {error.strerror}") from error
    shared = stat.S_IMODE(status.st_mode) & 0o022 and not status.st_mode & stat.S_ISVTX
    if status.st_uid not in (0, os.getuid()) or shared:
        raise ConfigError(
            f"--admin-socket: {folder} can be written by others; expected a folder of this user's"
        )
