"""The REST port: uvicorn in a thread of its own."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import threading
import time
from functools import partial
from typing import Any, cast

import uvicorn

from firewall.errors import ConfigError
from firewall.serve.admission import AdmissionController
from firewall.serve.descriptors import connection_limit
from firewall.serve.http_protocol import BoundedHttpProtocol
from firewall.serve.tls import Credentials, Reader

log = logging.getLogger(__name__)

#: Seconds that an idle connection is kept between two requests.
KEEP_ALIVE = 75
#: Connections at a time, shared fairly by client; further ones are closed.
MAX_CONNECTIONS = 4096
_BACKLOG = 512
_LOOK = 1.0


class RestServer:
    """A bound HTTP port."""

    def __init__(
        self,
        application: Any,
        *,
        host: str,
        port: int,
        flag: str,
        credentials: Credentials | None,
        shared_port: bool = False,
    ) -> None:
        """Bind the port; nothing is answered before `start`.

        Args:
            application: ASGI.
            host: address.
            port: 0 takes a free one.
            flag: that names the port, for errors.
            credentials: of TLS; None means plain text.
            shared_port: whether other workers listen on the same port.

        Raises:
            ConfigError: the port cannot be bound, or the certificate cannot be used.

        """
        self._reader = None if credentials is None else Reader(credentials)
        self._socket = bind_socket(host, port, flag, shared=shared_port)
        self.port: int = self._socket.getsockname()[1]
        self._connections = AdmissionController(connection_limit(MAX_CONNECTIONS))
        config = uvicorn.Config(
            application,
            loop="asyncio",
            # Any callable that makes a protocol.
            http=cast(type[asyncio.Protocol], partial(BoundedHttpProtocol, self._connections)),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE,
        )
        if credentials is not None and self._reader is not None:
            config.ssl_certfile = str(credentials.certificate)
            config.ssl_keyfile = str(credentials.key)
            config.load()
            config.ssl = self._reader.http_context()
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="rest", daemon=True)

    def start(self) -> None:
        """Answer requests."""
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.005)

    def stop(self, grace: float) -> None:
        """Take no more requests, let running ones end, and free the port."""
        self._server.config.timeout_graceful_shutdown = max(1, int(grace))
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(grace + 5.0)
        self._socket.close()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception:
            log.exception("the REST server ended")

    async def _serve(self) -> None:
        refreshing = asyncio.create_task(self._refresh_certificates())
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            refreshing.cancel()

    async def _refresh_certificates(self) -> None:
        while self._reader is not None:
            self._reader.refresh()
            await asyncio.sleep(_LOOK)


def bind_socket(host: str, port: int, flag: str, *, shared: bool = False) -> socket.socket:
    """Bind a listening TCP socket.

    Args:
        host: address, IPv6 with or without brackets.
        port: 0 takes a free one.
        flag: that names the port, for errors.
        shared: whether other processes of this server bind the same port.

    Raises:
        ConfigError: it cannot be bound.

    """
    listening, address = tcp_socket(host)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listening.bind((address, port))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        problem = "; is it in use?" if error.errno == errno.EADDRINUSE else f": {error.strerror}"
        raise ConfigError(f"{flag}: {host}:{port} cannot be bound{problem}") from error
    listening.set_inheritable(False)
    return listening


def tcp_socket(host: str) -> tuple[socket.socket, str]:
    """Make a TCP socket for an address, and say what it is to be bound to.

    `::` is every address of both families, and of IPv4 alone where the machine has no IPv6.
    """
    address = host.strip("[]")
    # The protocol is named: asyncio turns Nagle's algorithm off only for sockets that say TCP, and
    # with it every answer waits 40 ms for a delayed acknowledgement.
    if address == "::":
        try:
            made = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        except OSError:
            address = "0.0.0.0"
        else:
            return made, address
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP), address
