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

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Trust = Annotated[
    list[Path] | None, typer.Option("--trust", help="A signer's public key (.pub); repeatable.")
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
