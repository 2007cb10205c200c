"""What carries calls to our methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from firewall.serve.boundary import Boundary, RawMethod
from firewall.serve.gate import Room

#: Seconds for threads whose call is over, at most.
LAST = 5.0


@dataclass(frozen=True)
class Callee:
    """What a transport carries calls to.

    Attributes:
        methods: ours, by path.
        stock: adds gRPC's own services to a `grpc.Server`, or to what takes them like one.
        boundary: of our methods, made for the room of the transport.
        draining: whether the server is shutting down.

    """

    methods: Mapping[str, RawMethod]
    stock: Callable[[Any], None]
    boundary: Callable[[Room], Boundary]
    draining: Callable[[], bool]


class Transport(Protocol):
    """Bound to a port when it is made; errors as `tls.bind`."""

    boundary: Boundary
    port: int

    def start(self) -> None:
        """Answer."""
        ...

    def stop(self, grace: float) -> None:
        """Take no more calls, let those that run end within some seconds, and free the port."""
        ...
