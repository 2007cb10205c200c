"""Several processes that answer on one port, and one that keeps them running.

Each worker is a whole `firewall serve` with a listening socket of its own (SO_REUSEPORT): the
kernel gives each connection to one of them. The supervisor answers no requests. It starts a worker
anew when it ends, passes signals on, and shows operators all of them as one.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from firewall.errors import ConfigError, FirewallError

log = logging.getLogger(__name__)

#: Seconds in which a worker must be ready; a large model on a cold disk takes its time.
_READY = 600.0
#: Seconds before a worker that ended is started anew: at first, and after it ended again and again.
_SOON, _LATER = 0.2, 30.0
#: Seconds after which a worker counts as one that runs.
_STABLE = 10.0


class WorkerFailed(FirewallError):
    """A worker ended before it was ready; it has said why on standard error."""

    def __init__(self, code: int) -> None:
        super().__init__(f"a worker ended with status {code} before it was ready")
        self.code = code


@dataclass
class Worker:
    """A process that answers.

    Attributes:
        number: from 0; the one in its place has the same.
        process: its own.
        http_port: of its metrics, on the loopback address.
        admin_port: of its admin service, on the loopback address.
        started: when, on the monotonic clock.

    """

    number: int
    process: subprocess.Popen[bytes]
    http_port: int
    admin_port: int
    started: float


class Supervisor:
    """Keeps a number of workers running."""

    def __init__(
        self,
        count: int,
        command: Callable[[int], list[str]],
        *,
        joined: Callable[[Worker, Callable[[], None]], None] = lambda worker, add: add(),
        event: Callable[[str, Worker, int], None] = lambda what, worker, status: None,
    ) -> None:
        """Nothing runs before `start`.

        Args:
            count: of workers.
            command: of a worker, by the descriptor to which it writes its ports when it is ready.
            joined: called with a new worker, and with what makes it count; brings it to what the
                others serve before that.
            event: told when a worker has `ended` or was `started`.

        """
        self._count, self._command = count, command
        self._joined, self._event = joined, event
        self._lock = threading.Lock()
        self._workers: dict[int, Worker] = {}
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        #: How often a worker was started in the place of one that ended.
        self.restarts = 0

    @property
    def workers(self) -> list[Worker]:
        """Those that are ready."""
        with self._lock:
            return [one for _, one in sorted(self._workers.items())]

    def start(self) -> None:
        """Start the workers; returns when all are ready.

        Raises:
            WorkerFailed: one was not.

        """
        # The first alone: what is wrong with the settings is said once.
        try:
            self._add(self._launch(0))
            launched = [self._launch_later(number) for number in range(1, self._count)]
            for thread, found in launched:
                thread.join()
                if isinstance(found[0], Exception):
                    raise found[0]
                self._add(found[0])
        except BaseException:
            self.stop(5.0)
            raise
        for number in range(self._count):
            thread = threading.Thread(
                target=self._keep, args=(number,), name=f"worker {number}", daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def send(self, number: int) -> None:
        """Pass a signal on to every worker."""
        for worker in self.workers:
            worker.process.send_signal(number)

    def stop(self, grace: float) -> None:
        """Let every worker drain, and end those that take longer than the grace and some more."""
        self._stopping.set()
        workers = self.workers
        self.send(signal.SIGTERM)
        end = time.monotonic() + grace + 10.0
        for worker in workers:
            try:
                worker.process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("worker %d did not stop in time", worker.number)
                worker.process.kill()
                worker.process.wait()
        for thread in self._threads:
            thread.join(timeout=5)

    def _add(self, worker: Worker) -> None:
        def add() -> None:
            with self._lock:
                self._workers[worker.number] = worker

        self._joined(worker, add)

    def _launch_later(self, number: int) -> tuple[threading.Thread, list[Worker | Exception]]:
        found: list[Worker | Exception] = []

        def run() -> None:
            try:
                found.append(self._launch(number))
            except Exception as error:
                found.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread, found

    def _launch(self, number: int) -> Worker:
        """A worker that is ready."""
        reading, writing = os.pipe()
        started = time.monotonic()
        try:
            try:
                # A group of its own: Ctrl-C goes to the supervisor, which passes it on.
                process = subprocess.Popen(
                    self._command(writing), pass_fds=(writing,), process_group=0
                )
            finally:
                os.close(writing)
            line = _line(reading, process)
        finally:
            os.close(reading)
        if line is None:
            process.kill()
            raise WorkerFailed(process.wait())
        said = json.loads(line)
        return Worker(number, process, int(said["http_port"]), int(said["admin_port"]), started)

    def _keep(self, number: int) -> None:
        """Wait for a worker to end, and start another one in its place."""
        pause = _SOON
        while True:
            with self._lock:
                worker = self._workers[number]
            status = worker.process.wait()
            if self._stopping.is_set():
                return
            with self._lock:
                del self._workers[number]
            log.error("worker %d ended with status %d", number, status)
            self._event("ended", worker, status)
            pause = _SOON if time.monotonic() - worker.started > _STABLE else pause
            while True:
                if self._stopping.wait(pause):
                    return
                pause = min(2 * pause, _LATER)
                try:
                    worker = self._launch(number)
                except (FirewallError, OSError) as error:
                    log.error("worker %d cannot be started: %s", number, error)
                    continue
                try:
                    self._add(worker)
                    break
                except FirewallError as error:
                    log.error("worker %d cannot follow the others: %s", number, error)
                    worker.process.kill()
                    worker.process.wait()
            with self._lock:
                self.restarts += 1
            if self._stopping.is_set():
                worker.process.send_signal(signal.SIGTERM)
                return
            self._event("started", worker, 0)


def free_port(host: str, port: int) -> tuple[socket.socket, int]:
    """Hold a port that workers share: the socket keeps it, and takes no connections.

    Raises:
        ConfigError: somebody else has it.

    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bare = host.strip("[]")
    # Without the option first: with it, a port of another set of workers would be taken for free.
    with socket.socket(family) as alone:
        try:
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind((bare, port))
        except OSError as error:
            raise ConfigError(f"--port: {host}:{port} cannot be bound; is it in use?") from error
    held = socket.socket(family)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        held.bind((bare, port))
    except OSError as error:
        held.close()
        raise ConfigError(f"--port: {host}:{port} cannot be bound; is it in use?") from error
    return held, int(held.getsockname()[1])


def _line(descriptor: int, process: subprocess.Popen[bytes]) -> bytes | None:
    """What the worker writes when it is ready; None when it ends or takes too long."""
    end, found = time.monotonic() + _READY, b""
    while time.monotonic() < end:
        ready, _, _ = select.select([descriptor], [], [], 0.2)
        if ready:
            part = os.read(descriptor, 4096)
            found += part
            if found.endswith(b"\n"):
                return found
            if not part:
                return None
        elif process.poll() is not None:
            return None
    return None
