"""Where the admin service listens: a Unix socket, or a TCP port with a token or mutual TLS."""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping
from pathlib import Path

from google.protobuf.descriptor import ServiceDescriptor

from firewall.errors import Unauthenticated
from firewall.serve.admission import AdmissionController
from firewall.serve.context import RequestIds
from firewall.serve.grpc_api import GrpcMethods
from firewall.serve.grpc_server import GrpcServer
from firewall.serve.metrics import Metrics
from firewall.serve.pipeline import ClientNames, RequestPipeline
from firewall.serve.receive import MessageReceiver
from firewall.serve.status import admin_failure
from firewall.serve.tls import Credentials
from firewall.wire import admin_pb2

ADMIN: ServiceDescriptor = admin_pb2.DESCRIPTOR.services_by_name["AdminService"]
#: Changes are rare, and made one at a time.
MAX_REQUESTS = 16
MAX_MESSAGE_BYTES = 1 << 20
MESSAGE_TIMEOUT = 10.0
_SCHEME = "bearer "


class Operators:
    """Names operators: by certificate, by the one token, or as whoever may open the socket."""

    def __init__(self, token: str | None = None) -> None:
        """Ask for a token where one is given; a client certificate is enough without it."""
        self._token = None if token is None else token.encode()

    def client(
        self, address: str, headers: Mapping[str, str | bytes], certificate: str | None
    ) -> str:
        """Name an operator.

        Raises:
            Unauthenticated: it shows neither a certificate nor the token that is asked for.

        """
        if certificate is not None:
            return f"cert:{certificate}"
        if self._token is None:
            return address
        header = headers.get("authorization", "")
        given = header if isinstance(header, str) else ""
        secret = given[len(_SCHEME) :].strip() if given[: len(_SCHEME)].lower() == _SCHEME else ""
        if not hmac.compare_digest(secret.encode(), self._token):
            raise Unauthenticated("authorization: expected 'Bearer' and the operators' token")
        return f"token:{address}"


class AdminServer:
    """The admin service on one address."""

    def __init__(
        self,
        service: object,
        metrics: Metrics,
        address: str,
        *,
        credentials: Credentials | None = None,
        operators: ClientNames,
    ) -> None:
        """Bind.

        Args:
            service: answers, with a method for each of `AdminService`.
            metrics: of the server.
            address: `unix:PATH`, or host and port.
            credentials: of TLS; None means plain text.
            operators: names who asks.

        Raises:
            ConfigError: the address cannot be bound.

        """
        self._receiver = MessageReceiver()
        self._admission = AdmissionController(MAX_REQUESTS)
        pipeline = RequestPipeline(
            operators,
            self._admission,
            metrics,
            lambda: False,
            RequestIds(),
            describe=admin_failure,
        )
        methods = GrpcMethods(pipeline, self._receiver, lambda: MESSAGE_TIMEOUT)
        self._path = Path(address[len("unix:") :]) if address.startswith("unix:") else None
        # The socket is never open to others, not even before its mode is set.
        before = os.umask(0o177) if self._path is not None else None
        try:
            self._server = GrpcServer(
                (methods.handler(ADMIN, service),),
                address=address,
                flag="--admin-socket" if self._path is not None else "--admin-port",
                credentials=credentials,
                max_message_bytes=MAX_MESSAGE_BYTES,
                threads=MAX_REQUESTS,
            )
        finally:
            if before is not None:
                os.umask(before)
        self.address = (
            address
            if self._path is not None
            else f"{address.rpartition(':')[0]}:{self._server.port}"
        )

    def start(self) -> None:
        """Answer."""
        self._server.start()

    def stop(self, grace: float = 5.0) -> None:
        """Let running changes end, and free the address."""
        self._server.stop(grace, lambda: not self._admission.running)
        self._receiver.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
