"""HTTP for operators: /metrics, /healthz, /readyz."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from firewall.errors import ConfigError

StartResponse = Callable[[str, list[tuple[str, str]]], Any]


#: Connections that are answered at a time; more are closed.
_CONNECTIONS = 32


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # Off: a port that another server holds must be an error, not shared.
    allow_reuse_port = False

    def __init__(self, *arguments: Any) -> None:
        self._slots = threading.BoundedSemaphore(_CONNECTIONS)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    #: Seconds; a connection that says nothing gives its thread back.
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:
        """Probes come every second; the access log would be nothing else."""


class HttpServer:
    """A thread that answers probes and scrapes."""

    def __init__(
        self, host: str, port: int, registry: CollectorRegistry, ready: Callable[[], bool]
    ) -> None:
        """Bind, and serve until `close`.

        Raises:
            ConfigError: the port cannot be bound.

        """
        metrics = make_wsgi_app(registry)

        def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
            path = environ.get("PATH_INFO", "/")
            if environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
                return _text(start_response, HTTPStatus.METHOD_NOT_ALLOWED, "GET or HEAD")
            if path == "/metrics":
                served: Iterable[bytes] = metrics(environ, start_response)
                return served
            if path == "/healthz":
                return _text(start_response, HTTPStatus.OK, "ok")
            if path == "/readyz":
                if ready():
                    return _text(start_response, HTTPStatus.OK, "ready")
                return _text(start_response, HTTPStatus.SERVICE_UNAVAILABLE, "not ready")
            return _text(start_response, HTTPStatus.NOT_FOUND, "/metrics, /healthz or /readyz")

        try:
            self._server = make_server(
                host.strip("[]"), port, app,
                server_class=_Server6 if ":" in host else _Server, handler_class=_Quiet,
            )  # fmt: skip
        except OSError as error:
            raise ConfigError(
                f"--http-port: {host}:{port} cannot be bound: {error.strerror}"
            ) from error
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


def _text(start_response: StartResponse, status: HTTPStatus, text: str) -> list[bytes]:
    body = (text + "\n").encode()
    start_response(
        f"{status.value} {status.phrase}",
        [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))],
    )
    return [body]
