"""`firewall serve`: puts the parts of a server together, and takes them apart."""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firewall.cli.quarantine import open_store
from firewall.cli.shared import PolicyFile, Trust, default_bundle_in_a_process, read_policy
from firewall.errors import ConfigError

if TYPE_CHECKING:
    from firewall.bundle.manifest import Manifest
    from firewall.quarantine.writer import Writer
    from firewall.serve.admin import AdminServer
    from firewall.serve.identity import Identity
    from firewall.serve.metrics import Metrics
    from firewall.serve.models import Models
    from firewall.serve.monitoring import Memory
    from firewall.serve.review import Review
    from firewall.serve.rollout import Rollout
    from firewall.serve.upstream import Upstream

log = logging.getLogger(__name__)

#: Variable by which a worker knows its supervisor.
WORKER_SECRET = "FIREWALL_WORKER_SECRET"


def serve(
    bundles: Annotated[
        list[Path] | None, typer.Argument(help="Bundles; the default one without.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to bind.")] = "0.0.0.0",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="gRPC port; 0 takes a free one.")
    ] = 8081,
    http_port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, help="Port of /metrics, /healthz, /readyz; 0 takes a free one."
        ),
    ] = 8082,
    upstream: Annotated[
        str | None,
        typer.Option(
            help="The classifier of a bundle that has none inside: "
            "grpc://host:port/model[/version], grpcs:// with TLS."
        ),
    ] = None,
    upstream_ca: Annotated[
        Path | None, typer.Option(help="Certificate authorities of grpcs:// (PEM).")
    ] = None,
    upstream_timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds of a call without a deadline.")
    ] = 30.0,
    upstream_rows: Annotated[
        int, typer.Option(min=1, help="Rows of one call, views among them.")
    ] = 256,
    policy: PolicyFile = None,
    mode: Annotated[
        str | None, typer.Option(help="enforce, monitor or off; overrides the policy file.")
    ] = None,
    false_positive_rate: Annotated[
        float | None, typer.Option(help="Overrides the policy file.")
    ] = None,
    trust: Trust = None,
    threads: Annotated[int, typer.Option(min=0, help="Of one inference; 0 is one a core.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    max_message: Annotated[
        int, typer.Option(min=1024, max=(1 << 31) - 1, help="Bytes of one message.")
    ] = 64 << 20,
    max_rows: Annotated[int, typer.Option(min=1, help="Rows of one request.")] = 64,
    max_pixels: Annotated[int, typer.Option(min=1, help="Of an encoded image.")] = 50_000_000,
    max_wait: Annotated[
        float,
        typer.Option(
            min=0.01, help="Seconds that a request may wait; what would wait longer is refused."
        ),
    ] = 1.0,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds for running requests at the end.")
    ] = 15.0,
    transport: Annotated[
        str, typer.Option(help="http2: our own, fast; grpc: gRPC's server, as a way out.")
    ] = "http2",
    workers: Annotated[
        int, typer.Option(min=1, max=256, help="Processes that answer on the one port.")
    ] = 1,
    worker_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="The server's certificate chain (PEM), read on change.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(help="Authorities of clients (PEM), who must then show a certificate."),
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option(help="Clients' token hashes (TOML), as firewall token prints.")
    ] = None,
    allow_anonymous: Annotated[
        bool, typer.Option("--allow-anonymous", help="With --tokens: answer those without as well.")
    ] = False,
    client_rate: Annotated[
        float, typer.Option(min=0, help="Requests a second of one client; 0 is without limit.")
    ] = 0.0,
    client_burst: Annotated[
        float, typer.Option(min=0, help="Of one client at once; 0 is twice the rate.")
    ] = 0.0,
    admin_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port of AdminService, which is off without."),
    ] = None,
    admin_host: Annotated[
        str, typer.Option(help="Address of AdminService; mutual TLS where it is no loopback.")
    ] = "127.0.0.1",
    admin_cert: Annotated[
        Path | None, typer.Option("--admin-cert", help="AdminService's certificate (PEM).")
    ] = None,
    admin_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    admin_client_ca: Annotated[
        Path | None, typer.Option(help="Authorities of operators (PEM).")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Reload bundles and policy when their files change.")
    ] = False,
    state: Annotated[
        str | None,
        typer.Option(
            help="Where monitors remember: redis://host:port/0 for several replicas; in this "
            "process without."
        ),
    ] = None,
    state_key: Annotated[
        Path | None,
        typer.Option(help="Secret of what they remember; replicas share it. Made if not there."),
    ] = None,
    state_keys: Annotated[
        int, typer.Option(min=1000, help="That are kept in this process; about 200 bytes each.")
    ] = 250_000,
    quarantine: Annotated[
        str | None,
        typer.Option(
            help="Keep refused and flagged rows: a file, or sqlite:/// or postgresql+psycopg://."
        ),
    ] = None,
    quarantine_images: Annotated[
        str | None, typer.Option(help="Folder or fsspec URL of their images; beside the file.")
    ] = None,
    quarantine_key: Annotated[
        Path | None, typer.Option(help="Key of clients' pseudonyms; made if it is not there.")
    ] = None,
    quarantine_days: Annotated[float, typer.Option(min=0.001, help="That a row is kept.")] = 30.0,
    quarantine_bytes: Annotated[
        int, typer.Option(min=1 << 20, help="Of images; the oldest go first.")
    ] = 10 << 30,
    quarantine_sample: Annotated[
        float,
        typer.Option(
            min=0, max=100, help="Percent of all screened rows to keep as well, accepted ones too."
        ),
    ] = 0.0,
    traces: Annotated[
        bool,
        typer.Option(
            "--traces", help="Send OpenTelemetry traces to where OTEL_EXPORTER_OTLP_ENDPOINT says."
        ),
    ] = False,
    audit_log: Annotated[
        str, typer.Option(help="File to append JSON lines to; - is standard output.")
    ] = "-",
) -> None:
    """Serve bundles over gRPC until stopped. SIGHUP reads policy and bundles again."""
    # Asked for now: one that is killed while this starts has another number in its place later, and
    # one that is gone already cannot be told that this is ready.
    supervisor = None if worker_fd is None else os.getppid()
    from firewall.serve.memory import give_back, settle

    settle()
    from firewall.bundle.signing import config_dir, trusted_keys
    from firewall.bundle.store import Bundle, open_bundle
    from firewall.quarantine.entry import pseudonym
    from firewall.quarantine.key import pseudonym_key
    from firewall.screening.load import load_guard
    from firewall.screening.policy import Policy
    from firewall.serve.audit import Audit
    from firewall.serve.codec import Limits
    from firewall.serve.metrics import Metrics
    from firewall.serve.models import Models
    from firewall.serve.review import Review
    from firewall.serve.rollout import Rollout
    from firewall.serve.runtime import ServedModel
    from firewall.serve.server import Server, Settings
    from firewall.serve.tls import Credentials

    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"--device: {device!r}; expected cpu or cuda")
    if transport not in ("http2", "grpc"):
        raise ConfigError(f"--transport: {transport!r}; expected http2 or grpc")
    paths = bundles or [default_bundle_in_a_process()]
    if upstream is not None and len(paths) != 1:
        raise ConfigError(f"--upstream: is for one bundle; {len(paths)} are given")
    tls = Credentials.of(tls_cert, tls_key, tls_client_ca, "--tls")
    identity = _identity(tokens, allow_anonymous, host, tls is not None)
    operators = None
    if worker_fd is None:
        operators = _operators(
            admin_host, Credentials.of(admin_cert, admin_key, admin_client_ca, "--admin")
        )
    if workers > 1:
        from firewall.cli.supervise import Order, supervise

        supervise(
            Order(
                workers=workers, host=host, port=port, http_port=http_port, grace=grace,
                threads=threads,
                admin_host=admin_host, admin_port=admin_port, operators=operators,
                remembers=bool(read_policy(policy, mode, false_positive_rate).monitors),
                shared_state=state is not None,
            ),
            _audit_stream(audit_log),
        )  # fmt: skip
        return

    def settings_of_policy() -> Policy:
        return read_policy(policy, mode, false_positive_rate)

    chosen = settings_of_policy()
    metrics = Metrics()
    audit = Audit(_audit_stream(audit_log), metrics.audit_dropped)
    if quarantine_sample and quarantine is None:
        raise ConfigError("--quarantine-sample: keeps rows in --quarantine, which is missing")
    writer, key = None, b""
    if quarantine is not None:
        writer = _quarantine(
            quarantine, quarantine_images, quarantine_days, quarantine_bytes, metrics
        )
        key = pseudonym_key(quarantine_key or config_dir() / "pseudonym.key")

    memory = _memory(state, state_key, state_keys)

    def opened(path: Path) -> Bundle:
        # Keys are read anew: a signer that is trusted no more signs nothing that is loaded.
        return open_bundle(path, trusted_keys(trust or ()))

    def make(bundle: Bundle, wanted: Policy) -> ServedModel:
        classifier = None
        if upstream is not None:
            classifier = _upstream(
                bundle.manifest,
                upstream,
                upstream_ca,
                timeout=upstream_timeout,
                batch=upstream_rows,
                max_message=max_message,
            )
        guard = load_guard(
            bundle,
            wanted,
            threads=threads,
            device="cuda" if device == "cuda" else "cpu",
            classifier=classifier,
        )
        return ServedModel(
            bundle,
            guard,
            metrics=metrics,
            audit=audit,
            batch_rows=8,
            queue_rows=max(128, 2 * max_rows),
            keep=None if writer is None else writer.put,
            keep_share=quarantine_sample / 100,
            pseudonym=lambda client: pseudonym(client, key),
            memory=memory,
        )

    served: dict[str, ServedModel] = {}
    places: dict[str, Path] = {}
    for path in paths:
        bundle = opened(path)
        name = bundle.manifest.name
        if name in served:
            raise ConfigError(f"bundles: two of them are named {name!r}")
        served[name], places[name] = make(bundle, chosen), path
        # Its graphs are in the sessions now; their bytes need not stay.
        del bundle
    models = Models(served)
    del served
    rollout = Rollout(
        models, places, open_bundle=opened, make=make, policy=settings_of_policy,
        audit=audit, metrics=metrics,
    )  # fmt: skip
    settings = Settings(
        host=host,
        port=port,
        http_port=http_port,
        max_message=max_message,
        max_wait=max_wait,
        grace=grace,
        limits=Limits(rows=max_rows, pixels=max_pixels),
        tls=tls,
        identity=identity,
        client_rate=client_rate,
        client_burst=client_burst,
        http_host=None if worker_fd is None else "127.0.0.1",
        shared_port=worker_fd is not None,
        transport="grpc" if transport == "grpc" else "http2",
    )
    tracer = None
    if traces:
        from firewall.serve.tracing import OpenTelemetry

        tracer = OpenTelemetry()
    server = Server(models, settings, metrics, tracer)
    admin = None
    if admin_port is not None:
        admin = _admin(
            models, rollout, metrics, admin_host, admin_port, operators, worker_fd is not None,
            Review(None if writer is None else writer.store, models, audit),
        )  # fmt: skip
    # A list and not an Event: setting an Event twice from a handler can lock its own thread out.
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _: signals.append(received))
    server.start()
    files = _files(models, rollout, policy) if watch else None
    for part in (admin, files):
        if part is not None:
            part.start()
    if worker_fd is not None and admin is not None:
        try:
            _tell(worker_fd, server.http_port, admin.port)
        except BrokenPipeError:
            log.error("the supervisor is gone; this worker stops")
            signals.append(signal.SIGTERM)
    audit.event(
        "serving" if worker_fd is None else "worker",
        host=host,
        port=server.port,
        http_port=server.http_port,
        admin_port=None if admin is None else admin.port,
        models={slot.live.name: slot.live.manifest.version for slot in models},
        provider=[slot.live.guard.compiled.provider for slot in models],
        mode=chosen.mode,
        false_positive_rate=chosen.false_positive_rate,
        policy=chosen.digest,
    )
    give_back()
    _until_stopped(signals, rollout, supervisor)
    audit.event("draining", grace=grace)
    for part in (files, admin):
        if part is not None:
            part.stop()
    server.stop()
    if writer is not None:
        writer.close()
    memory.store.close()
    if tracer is not None:
        tracer.close()
    audit.event("stopped")
    audit.close()


def _until_stopped(signals: list[int], rollout: Rollout, supervisor: int | None) -> None:
    """Wait; SIGHUP reads everything again, and what cannot be used is in the audit log."""
    while True:
        while not signals:
            time.sleep(0.1)
            if supervisor is not None and os.getppid() != supervisor:
                log.error("the supervisor is gone; this worker stops")
                return
        if signals.pop(0) != signal.SIGHUP:
            return
        rollout.refresh("SIGHUP")


@dataclass(frozen=True)
class _Policies:
    """Every model's policy, read again."""

    models: Models
    rollout: Rollout

    def __call__(self) -> None:
        for slot in self.models:
            self.rollout.set_policy(slot.live.name, "watch")


def _files(models: Models, rollout: Rollout, policy: Path | None) -> Any:
    """What `--watch` looks at."""
    from firewall.serve.files import Files

    def changes() -> dict[Path, Any]:
        names = [slot.live.name for slot in models]
        found: dict[Path, Any] = {
            rollout.path(name): lambda name=name: rollout.reload(name, "watch") for name in names
        }
        if policy is not None:
            found[policy] = _Policies(models, rollout)
        return found

    return Files(changes)


def _identity(tokens: Path | None, allow_anonymous: bool, host: str, tls: bool) -> Identity:
    from firewall.serve.identity import Identity, Tokens
    from firewall.serve.tls import is_loopback

    if tokens is None:
        if allow_anonymous:
            raise ConfigError("--allow-anonymous: is for --tokens; without them everyone may ask")
        return Identity()
    if not tls and not is_loopback(host):
        log.warning("--tokens without --tls-cert: tokens cross the network in clear text")
    return Identity(Tokens.load(tokens), anonymous=allow_anonymous)


def _operators(host: str, credentials: Any) -> Any:
    from firewall.serve.tls import is_loopback

    if not is_loopback(host) and (credentials is None or credentials.clients is None):
        raise ConfigError(
            f"--admin-host: {host} is no loopback address; expected mutual TLS: --admin-cert, "
            "--admin-key and --admin-client-ca"
        )
    return credentials


def _admin(
    models: Models,
    rollout: Rollout,
    metrics: Metrics,
    host: str,
    port: int,
    credentials: Any,
    supervised: bool,
    review: Review,
) -> AdminServer:
    from firewall.serve.admin import AdminServer, AdminService
    from firewall.serve.fleet import OPERATOR_KEY
    from firewall.serve.identity import Identity, Names, SupervisedIdentity
    from firewall.serve.tls import authority

    identity: Names = Identity()
    if supervised:
        identity = SupervisedIdentity(os.environ[WORKER_SECRET], OPERATOR_KEY)
    return AdminServer(
        AdminService(models, rollout, review),
        metrics,
        authority(host, port),
        credentials,
        identity,
    )


def _tell(descriptor: int, http_port: int, admin_port: int) -> None:
    """The supervisor, that this worker is ready and where."""
    with os.fdopen(descriptor, "w") as file:
        file.write(json.dumps({"http_port": http_port, "admin_port": admin_port}) + "\n")


def _memory(state: str | None, key: Path | None, keys: int) -> Memory:
    """Where monitors remember, and the secret of it."""
    from firewall.monitors.memory import MemoryStore
    from firewall.monitors.redis import RedisStore
    from firewall.monitors.registry import MonitorRegistry
    from firewall.quarantine.entry import pseudonym
    from firewall.quarantine.key import pseudonym_key
    from firewall.serve.monitoring import Memory

    if state is not None and key is None:
        raise ConfigError("--state-key: missing; replicas that share --state share a secret too")
    # Drawn anew at every start where nobody else has to know it.
    secret = secrets.token_bytes(32) if key is None else pseudonym_key(key)
    return Memory(
        MonitorRegistry.discover(),
        MemoryStore(keys) if state is None else RedisStore(state),
        secret,
        lambda client: pseudonym(client, secret),
    )


def _quarantine(
    database: str, images: str | None, days: float, size: int, metrics: Metrics
) -> Writer:
    """Where refused rows go, by a thread of its own."""
    from firewall.quarantine.store import Limits
    from firewall.quarantine.writer import Writer

    writer = Writer(
        open_store(database, images),
        Limits(bytes=size, days=days),
        stored=lambda rows: metrics.quarantined("stored", rows),
        dropped=lambda rows: metrics.quarantined("dropped", rows),
    )
    metrics.quarantine_queue(lambda: writer.waiting)
    return writer


def _upstream(manifest: Manifest, url: str, authorities: Path | None, **others: Any) -> Upstream:
    """The classifier behind a guard; it may come up later."""
    from firewall.serve.upstream import Upstream, UpstreamSettings

    if authorities is not None:
        try:
            others["tls"] = authorities.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"--upstream-ca: {authorities} cannot be read: {error.strerror}"
            ) from error
    settings = UpstreamSettings.parse(url, **others)
    return Upstream(settings, input_name=manifest.input.name, output=manifest.output)


def _audit_stream(name: str) -> Any:
    if name == "-":
        reconfigure = getattr(sys.stdout, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(line_buffering=True)
        return sys.stdout
    try:
        # Line by line: workers append to one file, and a line is whole.
        return open(name, "a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise ConfigError(f"--audit-log: {name} cannot be opened: {error.strerror}") from error
