"""gRPC's own server: slower than our transport, and known to everybody."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import cast

import grpc

from firewall.serve.arrival import Arrivals
from firewall.serve.interceptor import Interceptor
from firewall.serve.services import NATIVE, OPEN_INFERENCE, generic_handler
from firewall.serve.settings import Settings
from firewall.serve.tls import authority, bind
from firewall.serve.transport import LAST, Callee
from firewall.serve.workers import Workers


class GrpcTransport:
    """A `Transport`."""

    def __init__(self, callee: Callee, settings: Settings) -> None:
        """Bind the port; errors as `tls.bind`."""
        self._grace = settings.grace
        self._arrivals, self._workers = Arrivals(), Workers(settings.threads, "rpc")
        self.boundary = callee.boundary(self._workers)
        services = (NATIVE, OPEN_INFERENCE)
        interceptor = Interceptor(
            frozenset(service.full_name for service in services),
            self.boundary,
            self._workers,
            self._arrivals,
            ThreadPoolExecutor(settings.side_threads, thread_name_prefix="side"),
            callee.draining,
        )
        self._server = grpc.server(
            cast(ThreadPoolExecutor, self._workers),
            interceptors=[interceptor],
            # A last resort, well above the backlog, which refuses with RetryInfo.
            maximum_concurrent_rpcs=settings.threads + settings.backlog + 1024,
            options=(
                # Off: a compressed message is inflated before its size is checked.
                ("grpc.compression_enabled_algorithms_bitset", 1),
                ("grpc.max_receive_message_length", settings.max_message),
                ("grpc.max_send_message_length", settings.max_message),
                # Off by default: two servers would share the requests of a port without a word.
                ("grpc.so_reuseport", int(settings.shared_port)),
            ),
        )
        for service in services:
            prefix = f"/{service.full_name}/"
            methods = {
                path.removeprefix(prefix): raw
                for path, raw in callee.methods.items()
                if path.startswith(prefix)
            }
            self._server.add_generic_rpc_handlers((generic_handler(service, methods),))
        callee.stock(self._server)
        address = authority(settings.host, settings.port)
        self.port: int = bind(self._server, address, settings.tls, "--port")

    def start(self) -> None:
        """Answer."""
        self._server.start()

    def stop(self, grace: float) -> None:
        """Take no more calls, let those that run end within some seconds, and free the port."""
        stopped = self._server.stop(grace)
        # A client that watches health would keep the server for the whole grace.
        while not stopped.wait(0.05):
            if self.boundary.idle:
                # A second more for answers that are on their way out.
                self._server.stop(min(1.0, self._grace)).wait()
                break
        self._workers.close(LAST)
        self._arrivals.close()
