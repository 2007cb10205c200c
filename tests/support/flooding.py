"""Run attackers on loopback in a process of their own.

An attacker is a function that is given a connected socket and works on it until it is told to
stop. It is run again on a new connection when the server has closed the old one.
"""

from __future__ import annotations

import multiprocessing
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

#: Another address for each attacker; a well-behaved client comes from 127.0.0.1.
OTHERS = ("127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5")
SAME = ("127.0.0.1",)
#: Seconds before a connection that was refused or reset is opened again.
_PAUSE = 0.02


@dataclass(frozen=True)
class Link:
    """A connection of an attacker.

    Attributes:
        socket: connected, with a timeout.
        number: of the connection among those of the attack.
        until: time.monotonic() at which the attack ends.

    """

    socket: socket.socket
    number: int
    until: float

    @property
    def over(self) -> bool:
        """Whether the attack has ended."""
        return time.monotonic() >= self.until

    def pause(self, seconds: float) -> None:
        """Wait, but not beyond the end of the attack."""
        time.sleep(max(0.0, min(seconds, self.until - time.monotonic())))

    def send(self, data: bytes) -> None:
        """Send everything, in parts, unless the attack ends."""
        view = memoryview(data)
        while len(view) and not self.over:
            with suppress(TimeoutError):
                view = view[self.socket.send(view[: 1 << 16]) :]

    def receive(self) -> bytes:
        """Receive something; empty when nothing comes for a moment."""
        try:
            data = self.socket.recv(1 << 16)
        except TimeoutError:
            return b""
        if not data:
            raise ConnectionError("closed by the server")
        return data

    def discard(self) -> None:
        """Read and forget what comes, in a thread, until the connection ends."""

        def read() -> None:
            with suppress(OSError):
                while not self.over:
                    self.receive()

        threading.Thread(target=read, daemon=True).start()

    def idle(self) -> None:
        """Read and forget what comes until the end of the attack or of the connection."""
        while not self.over:
            self.receive()


@dataclass(frozen=True)
class Flood:
    """An attack.

    Attributes:
        attack: what one connection does.
        connections: of all attackers together.
        small_buffers: whether the receive buffer is small, so that the server's writes stall.

    """

    attack: Callable[[Link], None]
    connections: int = 4
    small_buffers: bool = False


@contextmanager
def flooding(
    flood: Flood, port: int, seconds: float, addresses: Sequence[str] = OTHERS
) -> Iterator[None]:
    """Attack a port of this machine for a while, or for the duration of the block if shorter."""
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    process = context.Process(
        target=_attack, args=(flood, port, seconds, addresses, started), daemon=True
    )
    process.start()
    try:
        if not started.wait(30):
            raise RuntimeError("the attackers did not start")
        yield
    finally:
        process.kill()
        process.join()


def _attack(
    flood: Flood, port: int, seconds: float, addresses: Sequence[str], started: threading.Event
) -> None:
    started.set()
    until = time.monotonic() + seconds
    threads = [
        threading.Thread(
            target=_keep_attacking,
            args=(flood, port, addresses[number % len(addresses)], number, until),
            daemon=True,
        )
        for number in range(flood.connections)
    ]
    threading.stack_size(256 << 10)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _keep_attacking(flood: Flood, port: int, address: str, number: int, until: float) -> None:
    while time.monotonic() < until:
        with suppress(OSError), socket.socket() as sock:
            if flood.small_buffers:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.settimeout(5.0)
            sock.bind((address, 0))
            sock.connect(("127.0.0.1", port))
            sock.settimeout(0.2)
            flood.attack(Link(sock, number, until))
        time.sleep(_PAUSE)
