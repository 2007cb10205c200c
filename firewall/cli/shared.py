"""What several commands need: options, and bundles by default."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firewall.errors import ConfigError

if TYPE_CHECKING:
    from firewall.bundle.store import Bundle
    from firewall.client.security import Tls
    from firewall.screening.policy import Policy

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Trust = Annotated[
    list[Path] | None, typer.Option("--trust", help="A signer's public key (.pub); repeatable.")
]
Authorities = Annotated[
    Path | None, typer.Option("--ca", help="Authorities of the server (PEM); none is no TLS.")
]
Certificate = Annotated[Path | None, typer.Option("--cert", help="Yours (PEM).")]
Key = Annotated[Path | None, typer.Option("--key", help="Its private key (PEM).")]
PolicyFile = Annotated[
    Path | None, typer.Option("--policy", help="Policy in TOML; defaults apply without.")
]


def default_bundle(progress: Any) -> Path:
    """The default bundle, built here if need be. Imports torch only to build."""
    from firewall.bundle.signing import trusted_keys, user_signer
    from firewall.bundle.store import open_bundle
    from firewall.errors import BundleError, BundleMissing
    from firewall.train.default_recipe import cached_path

    path = cached_path()
    try:
        open_bundle(path, trusted_keys())
        return path
    except BundleMissing:
        pass
    except BundleError as error:
        raise ConfigError(f"{path}: {error}; remove that folder to have it built anew") from error
    try:
        from firewall.train.default_bundle import build_default
    except ImportError as error:
        raise ConfigError(
            "the default bundle is not built yet, which needs more packages: "
            "pip install 'robustness-firewall[train,demo]', then firewall demo"
        ) from error
    build_default(path, user_signer(), progress)
    return path


def default_bundle_in_a_process() -> Path:
    """The default bundle, built in another process if need be: torch stays out of this one."""
    from firewall.train.default_recipe import cached_path

    path = cached_path()
    if not path.exists():
        done = subprocess.run(
            [sys.executable, "-m", "firewall", "bundle", "default"], stdout=subprocess.DEVNULL
        )
        if done.returncode:
            raise typer.Exit(done.returncode)
    return path


def open_checked(path: Path | None, trust: list[Path] | None) -> Bundle:
    """A bundle after its total check; the default one without a path."""
    from firewall.bundle.signing import trusted_keys
    from firewall.bundle.store import open_bundle

    return open_bundle(path or default_bundle_in_a_process(), trusted_keys(trust or ()))


def read_policy(path: Path | None, mode: str | None, rate: float | None) -> Policy:
    """The policy file, and flags on top of it; errors as `Policy.load`."""
    from pydantic import ValidationError

    from firewall.screening.policy import Policy

    policy = Policy.load(path) if path else Policy()
    changes = {"mode": mode, "false_positive_rate": rate}
    body = policy.model_dump() | {key: value for key, value in changes.items() if value is not None}
    try:
        return Policy.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        flag = str(first["loc"][0]).replace("_", "-")
        raise ConfigError(f"--{flag}: {first['msg']}, got {first['input']!r}") from error


def read_tls(authorities: Path | None, certificate: Path | None, key: Path | None) -> Tls | None:
    """Certificates of a client; None without authorities of the server.

    Raises:
        ConfigError: a file cannot be read, or one is missing.

    """
    from firewall.client.security import Tls

    if (certificate is None) is not (key is None):
        raise ConfigError("--cert and --key belong together; one is missing")
    if authorities is None:
        if certificate is not None:
            raise ConfigError("--cert: is for TLS; name the server's authorities with --ca")
        return None
    found: list[bytes | None] = []
    for path, flag in ((authorities, "--ca"), (certificate, "--cert"), (key, "--key")):
        try:
            found.append(None if path is None else path.read_bytes())
        except OSError as error:
            raise ConfigError(f"{flag}: {path} cannot be read: {error.strerror}") from error
    return Tls(*found)


def read_token(path: Path) -> str:
    """A client's token: on a command line everyone on the machine could read it.

    Raises:
        ConfigError: the file cannot be read, or has none.

    """
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file: {path} cannot be read") from error
    if not token or not token.isprintable() or " " in token:
        raise ConfigError(f"--token-file: {path}: expected one token, as firewall token prints")
    return token
