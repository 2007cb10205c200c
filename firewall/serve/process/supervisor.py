"""Start worker processes, and start them anew when they end.

Each worker is a whole `firewall serve` with listening sockets of its own (SO_REUSEPORT): the kernel
gives each connection to one of them. The supervisor answers no requests. Where Kubernetes runs
several replicas, one worker each is the simpler choice.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from firewall.errors import FirewallError
from firewall.serve.process.desired_state import RunFolder

log = logging.getLogger(__name__)

#: Seconds in which a worker must be ready; a large model on a cold disk takes its time.
_READY_TIMEOUT = 600.0
#: Seconds before a worker that ended is started anew: at first, and after it ended again and again.
_FIRST_PAUSE, _MAX_PAUSE = 0.2, 30.0
#: Seconds after which a worker counts as stable.
_STABLE = 10.0
_PERIOD = 0.05


class WorkerFailed(FirewallError):
    """A worker ended before it was ready; it has said why on standard error."""

    def __init__(self, status: int) -> None:
        super().__init__(f"a worker ended with status {status} before it was ready")
        self.status = status


@dataclass(frozen=True)
class _Process:
    popen: subprocess.Popen[bytes]
    started: float


class Supervisor:
    """Keeps a number of workers running."""

    def __init__(
        self,
        count: int,
        command: Callable[[int], list[str]],
        folder: RunFolder,
        *,
        on_event: Callable[[str, int, int, int], None] = lambda event, number, pid, status: None,
    ) -> None:
        """Start nothing yet.

        Args:
            count: of workers.
            command: of a worker, by its number.
            folder: by which workers report that they are ready.
            on_event: called with `worker started` or `worker ended`, the worker's number, its
                process id and its exit status, when a worker is replaced.

        """
        self._count, self._command, self._folder = count, command, folder
        self._on_event = on_event
        self._lock = threading.Lock()
        self._ready: dict[int, _Process] = {}
        #: The latest process of each number, whether it is ready or not.
        self._launched: dict[int, subprocess.Popen[bytes]] = {}
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        #: Workers that were started in the place of others.
        self.restarts = 0

    def workers(self) -> list[int]:
        """Numbers of the workers that are ready."""
        with self._lock:
            return sorted(self._ready)

    def start(self) -> None:
        """Start the workers, and return when all are ready.

        Raises:
            WorkerFailed: one ended first.

        """
        try:
            # The first alone, so that what is wrong with the settings is said once.
            self._await(0, self._launch(0))
            launched = [(number, self._launch(number)) for number in range(1, self._count)]
            for number, process in launched:
                self._await(number, process)
        except BaseException:
            self.stop(5.0)
            raise
        for number in range(self._count):
            thread = threading.Thread(
                target=self._keep, args=(number,), name=f"worker {number}", daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def stop(self, grace: float) -> None:
        """Let every worker drain, and kill those that take longer than the grace and some more."""
        self._stopping.set()
        processes = dict(self._launched)
        for process in processes.values():
            process.send_signal(signal.SIGTERM)
        end = time.monotonic() + grace + 10.0
        for number, process in processes.items():
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("worker %d did not stop in time and is killed", number)
                process.kill()
                process.wait()
        for thread in self._threads:
            thread.join(timeout=5)

    def _launch(self, number: int) -> _Process:
        # A group of its own: Ctrl-C goes to the supervisor, which passes it on.
        popen = self._launched[number] = subprocess.Popen(self._command(number), process_group=0)
        return _Process(popen, time.monotonic())

    def _await(self, number: int, process: _Process) -> None:
        """Wait until a worker is ready.

        Raises:
            WorkerFailed: it ended, or took too long.

        """
        while time.monotonic() - process.started < _READY_TIMEOUT:
            report = self._folder.read_report(number)
            if report is not None and report.pid == process.popen.pid:
                with self._lock:
                    self._ready[number] = process
                return
            if process.popen.poll() is not None or self._stopping.wait(_PERIOD):
                break
        process.popen.kill()
        raise WorkerFailed(process.popen.wait())

    def _keep(self, number: int) -> None:
        """Wait for a worker to end, and start another one in its place."""
        pause = _FIRST_PAUSE
        while True:
            process = self._ready[number]
            status = process.popen.wait()
            if self._stopping.is_set():
                return
            with self._lock:
                del self._ready[number]
            self._folder.remove_report(number)
            log.error("worker %d ended with status %d", number, status)
            self._on_event("worker ended", number, process.popen.pid, status)
            if time.monotonic() - process.started > _STABLE:
                pause = _FIRST_PAUSE
            while True:
                if self._stopping.wait(pause):
                    return
                pause = min(2 * pause, _MAX_PAUSE)
                try:
                    self._await(number, self._launch(number))
                    break
                except (FirewallError, OSError) as error:
                    log.error("worker %d cannot be started: %s", number, error)
            self.restarts += 1
            if self._stopping.is_set():
                self._ready[number].popen.send_signal(signal.SIGTERM)
                return
            self._on_event("worker started", number, self._ready[number].popen.pid, 0)
