"""Options of the commands that ask a served classifier."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firewall.errors import ConfigError

if TYPE_CHECKING:
    from firewall.bundle.manifest import Manifest
    from firewall.bundle.store import Bundle
    from firewall.evaluation.target import BundleTarget
    from firewall.upstream.client import Upstream
    from firewall.upstream.settings import UpstreamSettings

UpstreamUrl = Annotated[
    str | None,
    typer.Option(
        "--upstream",
        help="For a bundle of a served classifier, where it is: grpc://host:port/model, or "
        "http://host:port/v2/models/NAME; grpcs:// and https:// use TLS.",
    ),
]
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


@contextmanager
def opened_upstream(
    manifest: Manifest, url: str | None, authorities: Path | None, token: Path | None
) -> Iterator[Upstream | None]:
    """Open the classifier of a bundle that has none inside, until the block ends.

    Args:
        manifest: of the bundle.
        url: where it is served; None where it is not given.
        authorities: as of `upstream_settings`.
        token: as of `upstream_settings`.

    Raises:
        ConfigError: a bundle has its classifier inside and a URL was given, or the other way round.

    """
    from firewall.upstream.client import Upstream

    if manifest.classifier.kind != "remote":
        if url is not None:
            raise ConfigError(
                f"--upstream: bundle {manifest.name!r} has its classifier inside; leave the flag "
                "out"
            )
        yield None
        return
    if url is None:
        raise ConfigError(
            f"bundle {manifest.name!r} has no classifier of its own; say where it is served with "
            "--upstream grpc://host:port/model or http://host:port/v2/models/NAME"
        )
    client = Upstream(
        upstream_settings(url, authorities, token),
        input_name=manifest.input.name,
        output=manifest.output,
        others=[one.name for one in manifest.other_outputs],
    )
    try:
        yield client
    finally:
        client.close()


def bundle_target(
    bundle: Bundle, upstream: UpstreamSettings | None, surrogates: Sequence[Path]
) -> BundleTarget:
    """Make a bundle something to evaluate, wherever its classifier is.

    Args:
        bundle: checked.
        upstream: where its classifier is served; None where it is inside.
        surrogates: .onnx files of stand-ins, which take what the classifier takes; the first gives
            gradients.

    Raises:
        ConfigError: the bundle's classifier is elsewhere and nobody says where, or the other way
            round; a surrogate is no such classifier.

    """
    from firewall.evaluation.onnx_target import OnnxTarget
    from firewall.evaluation.target import BundleTarget
    from firewall.sources.describe import options_of
    from firewall.upstream.client import Upstream

    manifest = bundle.manifest
    if manifest.classifier.kind != "remote":
        if upstream is not None:
            raise ConfigError(
                f"--upstream: bundle {manifest.name!r} has its classifier inside; leave the flag "
                "out"
            )
        return BundleTarget(bundle)
    if upstream is None:
        raise ConfigError(
            f"bundle {manifest.name!r} has no classifier of its own; say where it is served with "
            "--upstream grpc://host:port/model or http://host:port/v2/models/NAME"
        )
    settings = upstream
    spec = manifest.input
    stand_in = None
    if surrogates:
        shape = (spec.channels, spec.height, spec.width)
        stand_in = OnnxTarget.read(surrogates[0], shape, options_of(spec)).classifier()
    return BundleTarget(
        bundle,
        lambda: Upstream(
            settings,
            input_name=manifest.input.name,
            output=manifest.output,
            others=[one.name for one in manifest.other_outputs],
        ),
        stand_in,
    )
