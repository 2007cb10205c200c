"""`firewall serve --workers N`: the process that keeps the workers running."""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time
from pathlib import Path

from firewall.cores import usable_cores
from firewall.errors import ConfigError
from firewall.serve import components
from firewall.serve.admin.quarantine import QuarantineReview
from firewall.serve.admin.workers import WorkerAdmin
from firewall.serve.application import admin_server, log, warn
from firewall.serve.audit import Audit
from firewall.serve.metrics import Metrics
from firewall.serve.operations_http import operations_application
from firewall.serve.process.desired_state import RunFolder
from firewall.serve.process.signals import listen
from firewall.serve.process.supervisor import Supervisor, WorkerFailed
from firewall.serve.process.worker_metrics import SupervisorMetrics
from firewall.serve.rest_server import RestServer, bind_socket, tcp_socket
from firewall.serve.settings import Settings


def supervise(
    settings: Settings, bundles: list[Path], arguments: list[str], folder: RunFolder
) -> None:
    """Run workers until stopped.

    Args:
        settings: of the server.
        bundles: where each bundle lies.
        arguments: of `firewall serve`, which every worker gets too.
        folder: shared with the workers.

    Raises:
        ConfigError: a port cannot be bound.
        SystemExit: a worker could not start; with its status. Or the server was told to stop while
            it started; with status 0.

    """
    signals = listen()
    warn(settings)
    if settings.state is None and components.read_policy(settings).monitors:
        log.warning("--workers without --state: each worker remembers only its own requests")
    audit = Audit(components.audit_stream(settings.audit_log))
    held = [
        hold_port(settings.host, settings.grpc_port, "--grpc-port"),
        hold_port(settings.host, settings.rest_port, "--rest-port"),
    ]
    grpc_port, rest_port = (one.getsockname()[1] for one in held)
    threads = settings.inference_threads or max(1, usable_cores() // settings.workers)

    def command(number: int) -> list[str]:
        # The last of several equal flags counts.
        return [
            sys.executable, "-m", "firewall", *arguments, "--grpc-port", str(grpc_port),
            "--rest-port", str(rest_port), "--operations-host", "127.0.0.1",
            "--operations-port", "0", "--inference-threads", str(threads),
            "--worker", str(number), "--run-folder", str(folder.path),
        ]  # fmt: skip

    metrics = SupervisorMetrics(folder.metrics)

    def on_event(event: str, number: int, pid: int, status: int) -> None:
        audit.event(event, worker=number, pid=pid, status=status)
        metrics.changed(len(supervisor.workers()), supervisor.restarts, event, pid)

    supervisor = Supervisor(settings.workers, command, folder, on_event=on_event)
    started, stopping = threading.Event(), threading.Event()

    def is_ready() -> bool:
        if not started.is_set() or stopping.is_set():
            return False
        reports = [folder.read_report(number) for number in supervisor.workers()]
        return any(report is not None and report.ready for report in reports)

    operations = RestServer(
        operations_application(metrics.registry, is_ready),
        host=settings.operations_host,
        port=settings.operations_port,
        flag="--operations-port",
        credentials=None,
    )
    opened = components.bundle_opener(settings)
    specs = {}
    for path in bundles:
        manifest = opened(path).manifest
        specs[manifest.name] = manifest.input
    shared_metrics = Metrics()
    writer = components.quarantine_writer(settings, shared_metrics)
    review = QuarantineReview(None if writer is None else writer.store, specs.get, audit)
    admin_service = WorkerAdmin(folder, supervisor.workers, review, opened)
    operations.start()
    try:
        supervisor.start()
    except WorkerFailed as error:
        operations.stop(0.0)
        # It has said why, on the standard error that it shares with us.
        raise SystemExit(error.status if error.status > 0 else 1) from None
    admin = admin_server(settings, admin_service, shared_metrics, grpc_port)
    if admin is not None:
        admin.start()
    started.set()
    signals.started()
    # The page has the least readiness of all processes, and this one's stands in nobody's way.
    shared_metrics.ready(True)
    metrics.changed(len(supervisor.workers()), supervisor.restarts, "", 0)
    audit.event(
        "serving",
        host=settings.host,
        grpc_port=grpc_port,
        rest_port=rest_port,
        operations_port=operations.port,
        admin=None if admin is None else admin.address,
        workers=settings.workers,
        cores=usable_cores(),
        inference_threads=threads,
    )
    while True:
        while not signals.pending:
            time.sleep(0.1)
        if signals.pending.pop(0) != signal.SIGHUP:
            break
        admin_service.refresh("SIGHUP")
    audit.event("draining", grace=settings.grace)
    stopping.set()
    if admin is not None:
        admin.stop()
    supervisor.stop(settings.grace)
    operations.stop(0.0)
    if writer is not None:
        writer.close()
    for one in held:
        one.close()
    audit.event("stopped")
    audit.close()


def hold_port(host: str, port: int, flag: str) -> socket.socket:
    """Hold a port that workers share: the socket keeps it, and takes no connections.

    Raises:
        ConfigError: somebody else has it.

    """
    # Without the option first: with it, a port of another set of workers would be taken for free.
    alone = bind_socket(host, port, flag)
    port = alone.getsockname()[1]
    alone.close()
    held, address = tcp_socket(host)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        held.bind((address, port))
    except OSError as error:
        held.close()
        raise ConfigError(f"{flag}: {host}:{port} cannot be bound; is it in use?") from error
    return held
