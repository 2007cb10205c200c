"""Open a quarantine by what people write on a command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from firewall.errors import ConfigError
from firewall.secret_urls import is_url, resolve_url

if TYPE_CHECKING:
    from firewall.quarantine.store import Access, Store

#: Environment variables that hold URLs with passwords.
DATABASE_URL, IMAGES_URL = "FIREWALL_QUARANTINE_URL", "FIREWALL_QUARANTINE_IMAGES_URL"


def open_resolved(
    database: str,
    images: str | None,
    *,
    flags: tuple[str, str] = ("DATABASE", "--images"),
    access: Access = "write",
) -> Store:
    """Open the quarantine that command-line values stand for.

    Args:
        database: as of `open_store`, or `@FILE` or `@` (`resolve_url`).
        images: the same.
        flags: names of the two values on the command line, for errors.
        access: as of `open_store`.

    Raises:
        ConfigError: a value holds a password, or as `open_store`.

    """
    url = resolve_url(database, flag=flags[0], variable=DATABASE_URL)
    if images is not None:
        images = resolve_url(images, flag=flags[1], variable=IMAGES_URL)
    return open_store(url, images, access=access)


def open_store(database: str, images: str | None, *, access: Access = "create") -> Store:
    """Open a quarantine.

    Args:
        database: a file, which is SQLite, or a SQLAlchemy URL. Only what begins with `scheme://` is
            a URL: in anything else `?`, `#`, `%`, `;` and `@` are letters of a path.
        images: a folder or an fsspec URL, by the same rule; by default a folder beside the SQLite
            file.
        access: `create` makes what is missing; `write` and `read` want it to be there, and `read`
            changes nothing, also on a file system that cannot be written.

    Raises:
        ConfigError: database or images cannot be opened, or the images have no place.

    """
    from firewall.quarantine.store import Store

    place: str | Path = database if is_url(database) else Path(database).absolute()
    if images is None:
        if isinstance(place, str):
            if not place.startswith("sqlite:///"):
                raise ConfigError("--images: missing; give a folder or URL for the images")
            place = Path(place.removeprefix("sqlite:///")).absolute()
        return Store(place, place.with_name(place.name + ".images"), access=access)
    return Store(place, images if is_url(images) else Path(images).absolute(), access=access)
