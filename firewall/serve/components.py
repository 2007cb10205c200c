"""Make the parts of a server from its settings."""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from firewall.bundle.manifest import Manifest
from firewall.bundle.signing import trusted_keys
from firewall.bundle.store import Bundle, open_bundle
from firewall.errors import ConfigError, StateUnavailable
from firewall.private_files import open_private
from firewall.quarantine.entry import pseudonym
from firewall.quarantine.key import pseudonym_key
from firewall.quarantine.opening import open_resolved
from firewall.quarantine.store import Limits
from firewall.quarantine.writer import Writer
from firewall.reloaded import Reloaded
from firewall.screening.load import load_guard
from firewall.screening.policy import Policy
from firewall.secret_urls import resolve_url
from firewall.serve.auth import Authenticator, Tokens
from firewall.serve.metrics import Metrics
from firewall.serve.model import ServedModel, Services
from firewall.serve.observers import QuarantineSettings
from firewall.serve.query_monitors import Memory
from firewall.serve.settings import Settings
from firewall.upstream.client import Upstream
from firewall.upstream.settings import UpstreamSettings, is_secure
from firewall.upstream.token import read_token
from firewall.user_folders import config_dir

log = logging.getLogger(__name__)


def read_policy(settings: Settings) -> Policy:
    """The policy file with the settings that override it; errors as `Policy.load`."""
    return Policy.of(settings.policy, settings.mode, settings.false_positive_rate)


def bundle_opener(settings: Settings) -> Callable[[Path], Bundle]:
    """Open bundles of trusted signers. Keys are read anew for each: a signer that is trusted no
    more signs nothing that is loaded from then on.
    """
    return lambda path: open_bundle(path, trusted_keys(settings.trust))


def model_maker(
    settings: Settings, services: Services, upstreams: dict[str, str]
) -> Callable[[Bundle, Policy], ServedModel]:
    """Make served models of bundles."""

    def make(bundle: Bundle, policy: Policy) -> ServedModel:
        url = upstreams.get(bundle.manifest.name)
        guard = load_guard(
            bundle,
            policy,
            threads=settings.inference_threads,
            device=settings.device,
            classifier=None if url is None else upstream(settings, bundle.manifest, url),
        )
        return ServedModel(bundle, guard, services)

    return make


def upstream(settings: Settings, manifest: Manifest, url: str) -> Upstream:
    """The classifier behind a guard; it may come up later."""
    found = UpstreamSettings.parse(
        url,
        tls=_read_bytes(settings.upstream_ca, "--upstream-ca") if is_secure(url) else None,
        token=read_token(settings.upstream_token_file, os.environ),
        timeout=settings.upstream_timeout,
        batch=settings.upstream_rows,
        max_call_bytes=settings.upstream_bytes,
        max_message=settings.max_message_bytes,
    )
    return Upstream(
        found,
        input_name=manifest.input.name,
        output=manifest.output,
        others=[one.name for one in manifest.other_outputs],
    )


def authenticator(settings: Settings) -> Authenticator:
    """Name clients as the settings say."""
    if settings.tokens is None:
        return Authenticator()
    path = settings.tokens
    tokens = Reloaded([path], lambda: Tokens.load(path))
    return Authenticator(tokens.current, allow_anonymous=settings.allow_anonymous)


def memory(settings: Settings) -> Memory:
    """Where query monitors remember, and the secret of what they do."""
    from firewall.monitors.memory import MemoryStore
    from firewall.monitors.redis import RedisStore
    from firewall.monitors.registry import MonitorRegistry

    key = settings.state_key
    # Drawn at every start where no other replica has to know it.
    secret = secrets.token_bytes(32) if key is None else pseudonym_key(key)
    if settings.state is None:
        store: Any = MemoryStore(settings.state_keys)
    else:
        url = resolve_url(settings.state, flag="--state", variable="FIREWALL_STATE_URL")
        store = RedisStore(url)
        try:
            store.check()
        except StateUnavailable as error:
            log.warning("%s; until it can, the policy's on_fault decides about every row", error)
    return Memory(
        MonitorRegistry.discover(), store, secret, lambda client: pseudonym(client, secret)
    )


def quarantine_writer(settings: Settings, metrics: Metrics) -> Writer | None:
    """Where refused rows go; None where nothing is kept."""
    if settings.quarantine is None:
        return None
    flags = ("--quarantine", "--quarantine-images")
    return Writer(
        open_resolved(
            settings.quarantine, settings.quarantine_images, flags=flags, access="create"
        ),
        Limits(bytes=settings.quarantine_bytes, days=settings.quarantine_days),
        stored=lambda rows: metrics.quarantined("stored", rows),
        dropped=lambda rows: metrics.quarantined("dropped", rows),
        waiting=metrics.quarantine_queue,
    )


def quarantine_settings(settings: Settings, writer: Writer | None) -> QuarantineSettings | None:
    """How rows are kept; None where nothing is."""
    if writer is None:
        return None
    key = pseudonym_key(settings.quarantine_key or config_dir() / "pseudonym.key")
    return QuarantineSettings(
        writer.put, settings.quarantine_sample / 100, lambda client: pseudonym(client, key)
    )


def audit_stream(name: str) -> Any:
    """Open the audit log.

    Raises:
        ConfigError: it cannot be opened.

    """
    if name == "-":
        reconfigure = getattr(sys.stdout, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(line_buffering=True)
        return sys.stdout
    try:
        # Line by line: workers append to one file, and a line is whole.
        return open_private(name, "a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise ConfigError(f"--audit-log: {name} cannot be opened: {error.strerror}") from error


def _read_bytes(path: Path | None, flag: str) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{flag}: {path} cannot be read: {error.strerror}") from error


def operators_token(settings: Settings) -> str | None:
    """The token that the admin port asks for; None where it asks for none."""
    data = _read_bytes(settings.admin_token_file, "--admin-token-file")
    if data is None:
        return None
    token = data.decode(errors="replace").strip()
    if len(token) < 16 or not token.isprintable() or " " in token:
        raise ConfigError(
            f"--admin-token-file: {settings.admin_token_file}: expected one token of at least 16 "
            "characters"
        )
    return token
