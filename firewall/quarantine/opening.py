"""Open a quarantine by what people write on a command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from firewall.errors import ConfigError
from firewall.secret_urls import resolve_url

if TYPE_CHECKING:
    from firewall.quarantine.store import Store

#: Environment variables that hold URLs with passwords.
DATABASE_URL, IMAGES_URL = "FIREWALL_QUARANTINE_URL", "FIREWALL_QUARANTINE_IMAGES_URL"


def open_resolved(
    database: str, images: str | None, *, flags: tuple[str, str] = ("DATABASE", "--images")
) -> Store:
    """Open the quarantine that command-line values stand for.

    Args:
        database: as of `open_store`, or `@FILE` or `@` (`resolve_url`).
        images: the same.
        flags: names of the two values on the command line, for errors.

    Raises:
        ConfigError: a value holds a password, or as `open_store`.

    """
    url = resolve_url(database, flag=flags[0], variable=DATABASE_URL)
    if images is not None:
        images = resolve_url(images, flag=flags[1], variable=IMAGES_URL)
    return open_store(url, images)


def open_store(database: str, images: str | None) -> Store:
    """Open a quarantine.

    Args:
        database: a file, which is SQLite, or a SQLAlchemy URL.
        images: a folder or fsspec URL; by default a folder beside the SQLite file.

    Raises:
        ConfigError: database or images cannot be opened, or the images have no place.

    """
    from firewall.quarantine.store import Store

    url = database if "://" in database else f"sqlite:///{Path(database).absolute()}"
    if images is None:
        if not url.startswith("sqlite:///"):
            raise ConfigError("--images: missing; give a folder or URL for the images")
        images = url.removeprefix("sqlite:///") + ".images"
    return Store(url, images)
