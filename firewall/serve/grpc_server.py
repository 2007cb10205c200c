"""The gRPC port: grpcio's sync server, with every bound that it offers set on purpose.

Threads were chosen over asyncio by measurement (docs/decisions/0013-grpcio-threads.md). A message
may wait for its thread, so the pool is larger than the number of requests that are admitted:
refusals, health and reflection always find a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc

from firewall.serve.descriptors import connection_limit
from firewall.serve.tls import Credentials, bind

#: Seconds that a call may take to send its message, and the same while the server is busy.
MESSAGE_TIMEOUT, BUSY_MESSAGE_TIMEOUT = 20.0, 1.0
#: Connections at a time; further ones are closed.
MAX_CONNECTIONS = 2048
#: Threads for refusals, beyond those of admitted requests and of health.
_SPARE_THREADS = 8


def options(max_message_bytes: int, *, shared_port: bool = False) -> list[tuple[str, int]]:
    """Channel arguments of every gRPC port.

    With them the memory stays bounded under rapid reset (CVE-2023-44487), MadeYouReset
    (CVE-2025-8671) and the other floods of `benchmarks.floods`, except where the attackers open
    hundreds of connections a second, against which gRPC has no option.
    """
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # Off: a compressed message is inflated before its size is checked.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        # Off by default: two servers would silently share the requests of a port.
        ("grpc.so_reuseport", int(shared_port)),
        ("grpc.max_concurrent_streams", 100),
        ("grpc.max_metadata_size", 8 << 10),
        # Up to here fields are kept and handed to Python before the call is refused.
        ("grpc.absolute_max_metadata_size", 10 << 10),
        # Bytes of one read, of which every connection holds a buffer.
        ("grpc.experimental.tcp_max_read_chunk_size", 64 << 10),
        # Seconds after which calls that Python has not yet seen are dropped, of which gRPC keeps
        # any number.
        ("grpc.server_max_unrequested_time_in_server", 2),
        ("grpc.max_allowed_incoming_connections", connection_limit(MAX_CONNECTIONS)),
        ("grpc.http2.max_ping_strikes", 2),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_connection_idle_ms", 15 * 60_000),
        # Long-lived clients move to new replicas; running calls have the grace to end.
        ("grpc.max_connection_age_ms", 60 * 60_000),
        ("grpc.max_connection_age_grace_ms", 5 * 60_000),
        ("grpc.server_handshake_timeout_ms", 10_000),
    ]


class GrpcServer:
    """A bound gRPC port."""

    def __init__(
        self,
        handlers: Sequence[grpc.GenericRpcHandler],
        *,
        address: str,
        flag: str,
        credentials: Credentials | None,
        max_message_bytes: int,
        threads: int,
        shared_port: bool = False,
    ) -> None:
        """Bind the port.

        Args:
            handlers: of the services.
            address: as gRPC takes it.
            flag: that names the port, for errors.
            credentials: of TLS; None means plain text.
            max_message_bytes: of one message, both ways.
            threads: of calls that may run at a time.
            shared_port: whether other workers listen on the same port.

        Raises:
            ConfigError: the port cannot be bound.

        """
        threads += _SPARE_THREADS
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="rpc")
        self._server = grpc.server(
            self._pool,
            handlers=list(handlers),
            options=options(max_message_bytes, shared_port=shared_port),
            # A last resort: admission refuses earlier, and says when to retry.
            maximum_concurrent_rpcs=threads + 2048,
        )
        self.port: int = bind(self._server, address, credentials, flag)

    def start(self) -> None:
        """Answer calls."""
        self._server.start()

    def stop(self, grace: float, is_idle: Callable[[], bool]) -> None:
        """Take no more calls, let running ones end, and free the port.

        Args:
            grace: seconds for running calls.
            is_idle: whether no request of ours is in progress: a client that watches health would
                otherwise hold up the stop for the whole grace.

        """
        stopped = self._server.stop(grace)
        while not stopped.wait(0.05):
            if is_idle():
                # A second more for answers that are on their way out.
                self._server.stop(min(1.0, grace)).wait()
                break
        # A thread that is within onnxruntime when the interpreter ends would end the process by a
        # signal.
        self._pool.shutdown(wait=True, cancel_futures=True)
