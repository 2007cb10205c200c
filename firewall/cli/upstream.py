"""Options of the commands that ask a served classifier."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firewall.errors import ConfigError

if TYPE_CHECKING:
    from firewall.upstream.settings import UpstreamSettings

UpstreamCa = Annotated[
    Path | None,
    typer.Option(
        "--upstream-ca",
        help="Certificate authorities of grpcs:// and https:// (PEM file); the system's without.",
    ),
]
UpstreamTokenFile = Annotated[
    Path | None,
    typer.Option(
        "--upstream-token-file",
        help="File with the bearer token that the upstream is shown; "
        "the variable FIREWALL_UPSTREAM_TOKEN without.",
    ),
]


def upstream_settings(
    url: str, authorities: Path | None, token: Path | None, **limits: Any
) -> UpstreamSettings:
    """Read the URL of an upstream, and the files and the variable that belong to it.

    Args:
        url: as `UpstreamSettings.parse` takes it.
        authorities: PEM file of certificate authorities; None takes the system's.
        token: file with a bearer token; None takes the environment variable's, if there is one.
        limits: other attributes of the settings.

    Raises:
        ConfigError: the URL or a file cannot be used.

    """
    from firewall.upstream.settings import UpstreamSettings
    from firewall.upstream.token import read_token

    tls = None
    if authorities is not None:
        try:
            tls = authorities.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"--upstream-ca: {authorities} cannot be read: {error.strerror}"
            ) from error
    return UpstreamSettings.parse(url, tls=tls, token=read_token(token, os.environ), **limits)
