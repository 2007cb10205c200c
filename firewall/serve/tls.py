"""TLS of the server's ports, with certificates that are read again when they change."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from firewall.errors import ConfigError
from firewall.reloaded import Reloaded


@dataclass(frozen=True)
class Credentials:
    """Files of a port's TLS.

    Attributes:
        certificate: chain in PEM, the server's own first.
        key: its private key in PEM, without a password.
        clients: authorities of clients in PEM, which must then show a certificate; None asks for
            none.

    """

    certificate: Path
    key: Path
    clients: Path | None = None

    @classmethod
    def of(
        cls, certificate: Path | None, key: Path | None, clients: Path | None, prefix: str
    ) -> Credentials | None:
        """Credentials of the files that were given; None means plain text.

        Args:
            certificate: a file.
            key: a file.
            clients: a file.
            prefix: of the flags, such as `--tls`.

        Raises:
            ConfigError: one of them without the others.

        """
        if certificate is None and key is None and clients is None:
            return None
        if certificate is None or key is None:
            raise ConfigError(f"{prefix}-cert and {prefix}-key belong together; one is missing")
        return cls(certificate, key, clients)


@dataclass(frozen=True)
class _Files:
    key: bytes
    certificate: bytes
    clients: bytes | None

    def configuration(self) -> Any:
        return grpc.ssl_server_certificate_configuration(
            [(self.key, self.certificate)], self.clients
        )


class Reader:
    """Gives a port's certificates, as they are in their files now."""

    def __init__(self, credentials: Credentials) -> None:
        """Read the files.

        Raises:
            ConfigError: a file cannot be read or used.

        """
        self._credentials = credentials
        one = credentials
        paths = [path for path in (one.certificate, one.key, one.clients) if path is not None]
        self._given = _read(credentials)
        self._context = _http_context(credentials)
        self._files = Reloaded(paths, self._read)

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """As gRPC takes them; it asks for what is new at every handshake."""
        return grpc.dynamic_ssl_server_credentials(
            self._given.configuration(),
            self._changed,
            require_client_authentication=self._credentials.clients is not None,
        )

    def http_context(self) -> ssl.SSLContext:
        """As HTTP servers take them. The context is kept when the files change: its chain is loaded
        again, and new connections are shown the new one.
        """
        return self._context

    def refresh(self) -> None:
        """Look at the files, for servers that do not ask."""
        self._files.current()

    def _changed(self) -> Any:
        """What is new since gRPC last asked; None when nothing is. Never raises."""
        files = self._files.current()
        if files == self._given:
            return None
        self._given = files
        return files.configuration()

    def _read(self) -> _Files:
        files = _read(self._credentials)
        _load(self._context, self._credentials)
        return files


def bind(server: grpc.Server, address: str, credentials: Credentials | None, flag: str) -> int:
    """Bind a gRPC server's port; returns the port.

    Raises:
        ConfigError: it cannot be bound, or the files cannot be used.

    """
    secret = None if credentials is None else Reader(credentials).grpc_credentials()
    try:
        if secret is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, secret))
    except RuntimeError as error:
        raise ConfigError(f"{flag}: {address} cannot be bound; is it in use?") from error


def authority(host: str, port: int) -> str:
    """Host and port as gRPC takes them: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def _read(credentials: Credentials) -> _Files:
    """Read the files and check that they belong together.

    Raises:
        ConfigError: a file cannot be read or used.

    """
    read = _Files(
        _bytes(credentials.key),
        _bytes(credentials.certificate),
        None if credentials.clients is None else _bytes(credentials.clients),
    )
    _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), credentials)
    return read


def _http_context(credentials: Credentials) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    _load(context, credentials)
    return context


def _load(context: ssl.SSLContext, credentials: Credentials) -> None:
    """Load certificate, key and authorities into a context.

    Raises:
        ConfigError: they are not what they should be.

    """
    try:
        # OpenSSL would ask for a password on the terminal, and a server has none.
        context.load_cert_chain(credentials.certificate, credentials.key, password=lambda: b"")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ConfigError(
            f"{credentials.certificate}: not a certificate in PEM whose key without a password is "
            f"{credentials.key}"
        ) from error
    if credentials.clients is None:
        return
    try:
        context.load_verify_locations(cadata=_bytes(credentials.clients).decode("ascii"))
        context.verify_mode = ssl.CERT_REQUIRED
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"{credentials.clients}: not certificates of authorities in PEM"
        ) from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
