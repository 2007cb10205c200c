"""`firewall serve --workers N`: the process that keeps the workers running."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any

from firewall.errors import FirewallError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """What was asked for, as `firewall serve` has it.

    Attributes:
        workers: how many.
        host: of the gRPC port.
        port: of gRPC; 0 takes a free one.
        http_port: of the page about all workers.
        grace: seconds for running requests at the end.
        threads: of one inference; 0 divides the cores among workers.
        admin_host: of the admin service.
        admin_port: of it; None is without.
        operators: credentials of it.
        remembers: whether the policy names monitors.
        shared_state: whether they remember together.

    """

    workers: int
    host: str
    port: int
    http_port: int
    grace: float
    threads: int
    admin_host: str
    admin_port: int | None
    operators: Any
    remembers: bool
    shared_state: bool


def supervise(order: Order, stream: Any) -> None:
    """Run until stopped.

    Raises:
        ConfigError: a port cannot be bound.
        SystemExit: a worker could not start; with its status.

    """
    from firewall.cli.serve import WORKER_SECRET
    from firewall.serve.admin import AdminServer
    from firewall.serve.audit import Audit
    from firewall.serve.fleet import FleetAdminService
    from firewall.serve.http import HttpServer
    from firewall.serve.identity import Identity
    from firewall.serve.metrics import Metrics
    from firewall.serve.supervisor import Supervisor, Worker, WorkerFailed, free_port
    from firewall.serve.tls import authority
    from firewall.serve.worker_metrics import registry

    if order.remembers and not order.shared_state:
        log.warning("--workers without --state: each worker remembers only its own requests")
    audit = Audit(stream)
    held, port = free_port(order.host, order.port)
    secret = secrets.token_urlsafe(32)
    os.environ[WORKER_SECRET] = secret

    threads = order.threads or max(1, (os.cpu_count() or 1) // order.workers)

    def command(descriptor: int) -> list[str]:
        # What comes last counts.
        return [
            sys.executable, "-m", "firewall", *sys.argv[1:], "--workers", "1", "--port", str(port),
            "--http-port", "0", "--admin-host", "127.0.0.1", "--admin-port", "0",
            "--threads", str(threads), "--worker-fd", str(descriptor),
        ]  # fmt: skip

    def event(what: str, worker: Worker, status: int) -> None:
        audit.event(f"worker {what}", worker=worker.number, pid=worker.process.pid, status=status)

    fleet = FleetAdminService(lambda: supervisor.workers, secret)
    supervisor = Supervisor(order.workers, command, joined=fleet.join, event=event)
    stopping: list[bool] = []
    page = HttpServer(
        order.host,
        order.http_port,
        registry(
            lambda: [(one.number, one.http_port) for one in supervisor.workers],
            lambda: supervisor.restarts,
        ),
        lambda: bool(supervisor.workers) and not stopping,
    )
    admin = None
    if order.admin_port is not None:
        admin = AdminServer(
            fleet, Metrics(), authority(order.admin_host, order.admin_port), order.operators,
            Identity(),
        )  # fmt: skip
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _: signals.append(received))
    try:
        supervisor.start()
    except WorkerFailed as error:
        page.close()
        # It has said why, on the standard error that it shares with us.
        raise SystemExit(error.code if error.code > 0 else 1) from None
    if admin is not None:
        admin.start()
    audit.event(
        "serving", host=order.host, port=port, http_port=page.port,
        admin_port=None if admin is None else admin.port, workers=order.workers,
    )  # fmt: skip
    while True:
        while not signals:
            time.sleep(0.1)
        if signals.pop(0) != signal.SIGHUP:
            break
        fleet.refreshed()
        supervisor.send(signal.SIGHUP)
    audit.event("draining", grace=order.grace)
    stopping.append(True)
    if admin is not None:
        admin.stop()
    try:
        supervisor.stop(order.grace)
    except FirewallError:
        log.exception("the workers could not be stopped")
    page.close()
    held.close()
    audit.event("stopped")
    audit.close()
