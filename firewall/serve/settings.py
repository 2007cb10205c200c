"""How a server listens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from firewall.serve.codec import Limits
from firewall.serve.identity import Identity
from firewall.serve.tls import Credentials

TransportName = Literal["http2", "grpc"]


@dataclass(frozen=True)
class Settings:
    """How a server listens.

    Attributes:
        host: address to bind.
        port: gRPC; 0 takes a free one.
        http_port: /metrics, /healthz and /readyz; 0 takes a free one.
        max_message: bytes of one message, both ways.
        threads: requests that are handled at a time.
        backlog: requests that may wait for a thread; more are refused.
        max_wait: seconds that a request may wait for a thread and for the guard, as far as can be
            foreseen; one that would wait longer is refused.
        side_threads: for health and reflection.
        grace: seconds that running requests get when the server stops.
        limits: what one request may hold.
        tls: of the gRPC port; None is without.
        identity: whom a client is taken for.
        client_rate: requests a second of one client; 0 is without limit.
        client_burst: requests of one client that may come at once; twice the rate when 0.
        http_host: address of the HTTP port; `host` when None.
        shared_port: whether other workers listen on the gRPC port as well.
        transport: what carries calls: our own HTTP/2, or gRPC's server.

    """

    host: str = "0.0.0.0"
    port: int = 8081
    http_port: int = 8082
    max_message: int = 64 << 20
    threads: int = 32
    backlog: int = 256
    max_wait: float = 1.0
    side_threads: int = 8
    grace: float = 15.0
    limits: Limits = field(default_factory=Limits)
    tls: Credentials | None = None
    http_host: str | None = None
    identity: Identity = field(default_factory=Identity)
    client_rate: float = 0.0
    client_burst: float = 0.0
    shared_port: bool = False
    transport: TransportName = "http2"
