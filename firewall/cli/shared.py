"""Options and helpers that several commands share."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firewall.documents import read_text
from firewall.errors import ConfigError

if TYPE_CHECKING:
    from firewall.bundle.store import Bundle
    from firewall.client.security import Tls

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Trust = Annotated[
    list[str] | None,
    typer.Option(
        "--trust",
        help="Public key of a signer, repeatable: signer.pub for every model, or NAME=signer.pub "
        "for the models whose names match NAME (* and ? allowed).",
    ),
]
Authorities = Annotated[
    Path | None,
    typer.Option(
        "--ca", help="Certificate authorities of the server (PEM). Without it, no TLS is used."
    ),
]
Certificate = Annotated[Path | None, typer.Option("--cert", help="Client certificate (PEM).")]
Key = Annotated[Path | None, typer.Option("--key", help="Private key of --cert (PEM).")]
PolicyFile = Annotated[
    Path | None, typer.Option("--policy", help="Policy file (TOML); without it, defaults apply.")
]


def default_bundle(progress: Any, *, witness: bool = False) -> Path:
    """Return the path of the default bundle. Build it if it is missing, which imports torch."""
    from firewall.bundle.signing import trusted_keys, user_signer
    from firewall.bundle.store import open_bundle
    from firewall.errors import BundleError, BundleMissing, BundleUntrusted
    from firewall.train.default_recipe import cached_path

    path = cached_path(witness)
    try:
        open_bundle(path, trusted_keys())
        return path
    except BundleMissing:
        pass
    except BundleUntrusted:
        # Its key is gone, as after a move of the configuration: another one is made with ours.
        shutil.rmtree(path)
    except BundleError as error:
        raise ConfigError(f"{path}: {error}; remove that folder to have it built anew") from error
    try:
        from firewall.train.default_bundle import build_default
    except ImportError as error:
        raise ConfigError(
            "the default bundle is not built yet, which needs more packages: "
            "pip install 'robustness-firewall[train,demo]', then firewall demo"
        ) from error
    build_default(path, user_signer(), progress, witness=witness)
    return path


def default_bundle_in_a_process() -> Path:
    """As `default_bundle`, but build in another process, so that this one never imports torch."""
    from firewall.train.default_recipe import cached_path

    path = cached_path()
    if not path.exists():
        done = subprocess.run(
            [sys.executable, "-m", "firewall", "bundle", "default"], stdout=subprocess.DEVNULL
        )
        if done.returncode:
            raise typer.Exit(done.returncode)
    return path


def open_checked(path: Path | None, trust: list[str] | None) -> Bundle:
    """Open a bundle after checking everything; the default bundle without a path."""
    from firewall.bundle.signing import trusted_keys
    from firewall.bundle.store import open_bundle

    return open_bundle(path or default_bundle_in_a_process(), trusted_keys(trust or ()))


def read_tls(authorities: Path | None, certificate: Path | None, key: Path | None) -> Tls | None:
    """Read the certificates of a client; None if there are no authorities of the server.

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
    """Read a client's token from a file: a command line is visible to every user of the machine.

    Raises:
        ConfigError: the file cannot be read, or does not hold one token.

    """
    token = read_text(path, "--token-file").strip()
    if not token or not token.isprintable() or " " in token:
        raise ConfigError(f"--token-file: {path}: expected one token, as firewall token prints")
    return token
