"""Run a server from its settings until it is told to stop."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict

from firewall.cores import usable_cores
from firewall.errors import ConfigError
from firewall.protocol.addresses import is_loopback
from firewall.serve import components
from firewall.serve.admin.address import default_socket, make_socket_folder
from firewall.serve.admin.quarantine import QuarantineReview
from firewall.serve.admin.server import AdminServer, Operators
from firewall.serve.admin.service import AdminService
from firewall.serve.audit import Audit
from firewall.serve.metrics import Metrics
from firewall.serve.model import ServedModel, Services
from firewall.serve.process.desired_state import RunFolder
from firewall.serve.process.signals import listen
from firewall.serve.process.watcher import FileWatcher
from firewall.serve.process.worker import Worker
from firewall.serve.repository import ModelRepository
from firewall.serve.rollout import Rollout
from firewall.serve.server import Server
from firewall.serve.settings import Settings
from firewall.serve.tls import authority
from firewall.serve.tracing import OpenTelemetry
from firewall.upstream.settings import pair_upstreams

log = logging.getLogger(__name__)

#: `admin_socket` that turns the socket off.
NO_SOCKET = "off"


@dataclass(frozen=True)
class WorkerPlace:
    """Which worker this process is, and the folder that it shares with its supervisor."""

    number: int
    folder: RunFolder


def run(settings: Settings, bundles: Sequence[Path], worker: WorkerPlace | None = None) -> None:
    """Serve until SIGTERM or SIGINT. SIGHUP reads policy and bundles again.

    Args:
        settings: of the server.
        bundles: where each bundle lies.
        worker: which worker this is; None for a server of one process.

    Raises:
        FirewallError: it cannot start; the sentence says why.
        SystemExit: it was told to stop while it started; with status 0.

    """
    signals = listen()
    # Asked for first: a supervisor that is killed while this starts has another id in its place.
    supervisor = os.getppid() if worker is not None else None
    warn(settings)
    metrics = Metrics()
    audit = Audit(components.audit_stream(settings.audit_log), metrics.audit_dropped)
    writer = components.quarantine_writer(settings, metrics)
    memory = components.memory(settings)
    services = Services(
        metrics,
        audit,
        queue_rows=max(128, 2 * settings.max_rows),
        quarantine=components.quarantine_settings(settings, writer),
        memory=memory,
    )
    opened = components.bundle_opener(settings)
    policy = components.read_policy(settings)
    loaded = {path: opened(path) for path in bundles}
    names = [bundle.manifest.name for bundle in loaded.values()]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"bundles: two of them are named {twice!r}")
    make = components.model_maker(settings, services, pair_upstreams(names, settings.upstream))
    models: dict[str, ServedModel] = {}
    places: dict[str, Path] = {}
    for path in bundles:
        # Its graphs go into the sessions; their bytes need not stay.
        bundle = loaded.pop(path)
        models[bundle.manifest.name], places[bundle.manifest.name] = make(bundle, policy), path
        del bundle
    repository = ModelRepository(models)
    rollout = Rollout(
        repository,
        places,
        open_bundle=opened,
        make=make,
        policy=lambda: components.read_policy(settings),
        audit=audit,
        metrics=metrics,
        allow_downgrade=settings.allow_downgrade,
    )
    tracer = OpenTelemetry() if settings.traces else None
    server = Server(
        repository,
        settings,
        metrics,
        authenticator=components.authenticator(settings),
        tracer=tracer,
        shared_ports=worker is not None,
    )
    service = AdminService(
        repository,
        rollout,
        QuarantineReview(None if writer is None else writer.store, _input_of(repository), audit),
    )
    server.start()
    signals.started()
    parts: list[Any] = []
    admin = None
    if worker is not None:
        parts.append(
            Worker(
                worker.folder,
                worker.number,
                repository,
                rollout,
                is_ready=server.ready,
                status=lambda: _statuses(service, repository),
            )
        )
    else:
        admin = admin_server(settings, service, metrics, server.grpc_port)
    if admin is not None:
        parts.append(admin)
    if settings.watch:
        parts.append(_watcher(repository, rollout, settings.policy))
    for part in parts:
        part.start()
    audit.event(
        "serving" if worker is None else "worker",
        host=settings.host,
        grpc_port=server.grpc_port,
        rest_port=server.rest_port,
        operations_port=server.operations_port,
        admin=None if admin is None else admin.address,
        models={entry.live.name: entry.live.manifest.version for entry in repository},
        provider=[entry.live.guard.compiled.provider for entry in repository],
        cores=usable_cores(),
        inference_threads=settings.inference_threads or usable_cores(),
        mode=policy.mode,
        # Each model's own where the operator set none.
        false_positive_rate={
            entry.live.name: entry.live.guard.policy.false_positive_rate for entry in repository
        },
        policy=policy.digest,
    )
    _return_memory()
    _wait(signals.pending, rollout, supervisor)
    audit.event("draining", grace=settings.grace)
    for part in reversed(parts):
        part.stop()
    server.stop()
    if writer is not None:
        writer.close()
    memory.store.close()
    if tracer is not None:
        tracer.close()
    audit.event("stopped")
    audit.close()


def warn(settings: Settings) -> None:
    """Log settings that work but are probably not meant."""
    for name in settings.unknown_variables():
        log.warning("environment variable %s sets nothing; is it misspelt?", name)
    if settings.tokens is not None and settings.tls is None and not is_loopback(settings.host):
        log.warning("--tokens without --tls-cert: tokens cross the network in clear text")


def admin_server(
    settings: Settings, service: object, metrics: Metrics, grpc_port: int
) -> AdminServer | None:
    """The admin service where the settings want it: on a TCP port, or else on a socket."""
    if settings.admin_port is not None:
        return AdminServer(
            service,
            metrics,
            authority(settings.admin_host, settings.admin_port),
            credentials=settings.admin_tls,
            operators=Operators(components.operators_token(settings)),
        )
    if str(settings.admin_socket) == NO_SOCKET:
        return None
    path = (settings.admin_socket or default_socket(grpc_port)).absolute()
    try:
        make_socket_folder(path)
        return AdminServer(service, metrics, f"unix:{path}", operators=Operators())
    except ConfigError as error:
        if settings.admin_socket is not None:
            raise
        log.warning("no admin socket: %s", error)
        return None


def _wait(signals: list[int], rollout: Rollout, supervisor: int | None) -> None:
    """Wait for a signal to stop; SIGHUP reads policy and bundles again."""
    while True:
        while not signals:
            time.sleep(0.1)
            if supervisor is not None and os.getppid() != supervisor:
                log.error("the supervisor is gone; this worker stops")
                return
        if signals.pop(0) != signal.SIGHUP:
            return
        rollout.refresh("SIGHUP")


def _watcher(repository: ModelRepository, rollout: Rollout, policy: Path | None) -> FileWatcher:
    def reload_policies() -> None:
        for entry in repository:
            rollout.set_policy(entry.live.name, "watch")

    def targets() -> dict[Path, Callable[[], object]]:
        names = [entry.live.name for entry in repository]
        found: dict[Path, Callable[[], object]] = {
            rollout.path(name): lambda name=name: rollout.reload(name, "watch")  # type: ignore[misc]
            for name in names
        }
        if policy is not None:
            found[policy] = reload_policies
        return found

    return FileWatcher(targets)


def _input_of(repository: ModelRepository) -> Callable[[str], Any]:
    specs = {entry.live.name: entry.live.manifest.input for entry in repository}
    return specs.get


def _statuses(service: AdminService, repository: ModelRepository) -> list[dict[str, Any]]:
    return [MessageToDict(service.status(entry.live.name, changed=False)) for entry in repository]


def _return_memory() -> None:
    """Give the system what is free (glibc: malloc_trim): bundles are read whole before they are
    checked, and nothing of them is needed once their graphs are open.
    """
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
