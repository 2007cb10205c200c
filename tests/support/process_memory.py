"""How much memory a server takes while something happens to it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

#: MiB beyond which the server is killed, for the sake of this machine.
_TOO_MUCH = 3072
_PERIOD = 0.05


@dataclass
class Memory:
    """Resident memory of a server and its children, in MiB."""

    pid: int
    before: float = 0.0
    peak: float = 0.0
    killed: bool = False
    _over: threading.Event = field(default_factory=threading.Event)

    def read(self) -> float:
        """Now."""
        return sum(_resident(one) for one in _family(self.pid))

    @contextmanager
    def sampled(self) -> Iterator[None]:
        """Keep the peak."""
        self.before = self.peak = self.read()
        thread = threading.Thread(target=self._sample)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _sample(self) -> None:
        while not self._over.wait(_PERIOD):
            # The kernel's own peak, of the server alone, and what its children have beside it.
            now = max(self.read(), _resident(self.pid, "VmHWM"))
            self.peak = max(self.peak, now)
            if now > _TOO_MUCH and not self.killed:
                self.killed = True
                os.kill(self.pid, signal.SIGKILL)


def _family(pid: int) -> list[int]:
    found = [pid]
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                found += _family(int(child))
    except OSError:
        pass
    return found


def _resident(pid: int, name: str = "VmRSS") -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024
