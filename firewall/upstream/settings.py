"""Where a served classifier is, how it is asked, and which bundle it belongs to."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote

from firewall.errors import ConfigError
from firewall.upstream.token import VARIABLE

#: Which API of the Open Inference Protocol is spoken.
Protocol = Literal["grpc", "rest"]

_URL = re.compile(
    r"(?P<scheme>grpcs?|https?)://(?P<address>[^/\s]+:(?P<port>\d{1,5}))/(?P<path>\S+)"
)
_SHORT = re.compile(r"(?P<model>[^/]+)(/(?P<version>[^/]+))?")
_LONG = re.compile(r"v2/models/(?P<model>[^/]+)(/versions/(?P<version>[^/]+))?")
_EXPECTED = (
    "expected grpc://host:port/model, grpc://host:port/model/version or "
    "http://host:port/v2/models/NAME (grpcs:// and https:// use TLS)"
)


@dataclass(frozen=True)
class UpstreamSettings:
    """Where the classifier is, and the limits of a call.

    Attributes:
        address: `host:port`.
        model: name of the model there.
        version: of the model; empty is the server's choice.
        protocol: `grpc` or `rest`.
        tls: certificate authorities in PEM; None is plain text, empty the system's authorities.
        token: gives the bearer token that is sent as `authorization`; None sends none.
        timeout: seconds of a call without a deadline.
        batch: rows of one call at most, views among them; more rows are several calls.
        max_call_bytes: tensor bytes of one call at most, but one row at least. The default fits
            into MLServer's limit of 4 MiB and KServe's of 8 MiB.
        max_message: bytes of one answer at most.
        breaker: failures in a row after which requests are refused at once.
        pause: seconds until one request tries again.

    """

    address: str
    model: str
    version: str = ""
    protocol: Protocol = "grpc"
    tls: bytes | None = None
    token: Callable[[], str] | None = None
    timeout: float = 30.0
    batch: int = 256
    max_call_bytes: int = 4_000_000
    max_message: int = 64 << 20
    breaker: int = 5
    pause: float = 1.0

    @classmethod
    def parse(cls, url: str, *, tls: bytes | None = None, **limits: Any) -> UpstreamSettings:
        """Read the URL of a model.

        gRPC: `grpc://host:port/model[/version]`. REST:
        `http://host:port/v2/models/NAME[/versions/V]`, or short `http://host:port/NAME[/version]`.
        `grpcs://` and `https://` use TLS.

        Args:
            url: of the model.
            tls: certificate authorities in PEM; the system's without.
            limits: the other attributes.

        Raises:
            ConfigError: the URL is something else, holds credentials, or is plain text although
                certificate authorities are given.

        """
        _refuse_credentials(url)
        parts = _URL.fullmatch(url)
        path = parts and (_LONG if _is_long(parts) else _SHORT).fullmatch(parts["path"])
        if parts is None or path is None or int(parts["port"]) > 65535:
            raise ConfigError(f"--upstream: {url!r}; {_EXPECTED}")
        rest, secure = parts["scheme"].startswith("http"), parts["scheme"].endswith("s")
        if tls is not None and not secure:
            raise ConfigError(
                f"--upstream-ca: {url} is plain text; expected grpcs:// or https:// with it"
            )
        model, version = path["model"], path["version"] or ""
        return cls(
            address=parts["address"],
            model=unquote(model) if rest else model,
            version=unquote(version) if rest else version,
            protocol="rest" if rest else "grpc",
            tls=(tls or b"") if secure else None,
            **limits,
        )


def is_secure(url: str) -> bool:
    """Whether the URL of an upstream, `NAME=` before it or not, asks for TLS."""
    return _split(url)[1].startswith(("grpcs://", "https://"))


def pair_upstreams(names: Sequence[str], urls: Sequence[str]) -> dict[str, str]:
    """Decide which bundle each upstream belongs to; returns URLs by bundle name.

    `NAME=URL` names the bundle. A plain URL belongs to the bundle that has its model's name; a
    single URL belongs to a single bundle, whatever the names. A bundle without an upstream is left
    out of the answer.

    Args:
        names: of the bundles, each once.
        urls: as the operator gives them.

    Raises:
        ConfigError: a URL is malformed, names no bundle, or belongs to one that has an upstream.

    """
    pairs: dict[str, str] = {}
    have = f"the bundles are {', '.join(map(repr, names))}"
    # Named ones first: the order in which they are given decides nothing.
    for entry in sorted(urls, key=lambda entry: not _split(entry)[0]):
        name, url = _split(entry)
        model = UpstreamSettings.parse(url).model
        if name and name not in names:
            raise ConfigError(f"--upstream: no bundle is named {name!r}; {have}")
        if not name and len(names) == len(urls) == 1:
            name = names[0]
        elif not name and model not in names:
            raise ConfigError(
                f"--upstream: {url} has no bundle named {model!r}; {have}; say whose it is with "
                f"NAME={url}"
            )
        name = name or model
        if name in pairs:
            raise ConfigError(
                f"--upstream: bundle {name!r} has two, {pairs[name]} and {url}; say whose each is "
                "with NAME=URL"
            )
        pairs[name] = url
    return pairs


def _is_long(parts: re.Match[str]) -> bool:
    return parts["scheme"].startswith("http") and parts["path"].startswith("v2/models/")


def _split(entry: str) -> tuple[str, str]:
    """Split `NAME=URL`; the name is empty where there is none."""
    before, separator, url = entry.partition("=")
    # Behind "://" an equals sign belongs to the URL.
    return (before, url) if separator and "://" not in before else ("", entry)


def _refuse_credentials(url: str) -> None:
    """Refuse a password or a query in a URL: everyone who lists processes reads it.

    Raises:
        ConfigError: there is one; the sentence does not repeat it.

    """
    authority = url.partition("://")[2].partition("/")[0]
    if "@" in authority or "?" in url or "#" in url:
        raise ConfigError(
            "--upstream: a URL with credentials or a query is refused, since process lists show "
            f"it; set {VARIABLE} or --upstream-token-file, which are sent as a bearer token"
        )
