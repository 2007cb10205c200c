"""TLS of our ports, with certificates that are read again when they change."""

from __future__ import annotations

import ipaddress
import logging
import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from firewall.errors import ConfigError

log = logging.getLogger(__name__)


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
        """What a command was given; None is without TLS.

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
class _Read:
    key: bytes
    certificate: bytes
    clients: bytes | None
    #: The same as `ssl` takes it: what HTTP/2 asks for (RFC 9113, section 9.2).
    context: ssl.SSLContext = field(compare=False)

    def configuration(self) -> Any:
        return grpc.ssl_server_certificate_configuration(
            [(self.key, self.certificate)], self.clients
        )


class Reader:
    """Reads the files when a connection comes in and one of them has changed.

    What cannot be used, such as a certificate whose key has not been written yet, leaves the one
    before in use and is said in the log, once.
    """

    def __init__(self, credentials: Credentials) -> None:
        """Read.

        Raises:
            ConfigError: a file cannot be read or used.

        """
        self._credentials = credentials
        self._lock = threading.Lock()
        self._seen = self._signature()
        self._read = _read(credentials)

    def credentials(self) -> grpc.ServerCredentials:
        """As gRPC takes it."""
        return grpc.dynamic_ssl_server_credentials(
            self._read.configuration(),
            self.changed,
            require_client_authentication=self._credentials.clients is not None,
        )

    def context(self) -> ssl.SSLContext:
        """For a new connection that speaks HTTP/2, by the files as they are now. Never raises."""
        self.changed()
        return self._read.context

    def changed(self) -> Any:
        """What is new since it was last asked; None when nothing is. Never raises: gRPC asks."""
        with self._lock:
            try:
                seen = self._signature()
                if seen == self._seen:
                    return None
                self._seen = seen
                read = _read(self._credentials)
            except (ConfigError, OSError) as error:
                log.error("TLS: %s; what was read before stays in use", error)
                return None
            if read == self._read:
                return None
            self._read = read
            log.info("TLS: the certificate was read again")
            return read.configuration()

    def _signature(self) -> tuple[tuple[int, int, int], ...]:
        one = self._credentials
        return tuple(
            (status.st_mtime_ns, status.st_size, status.st_ino)
            for path in (one.certificate, one.key, one.clients)
            if path is not None and (status := _stat(path))
        )


def bind(server: grpc.Server, address: str, credentials: Credentials | None, flag: str) -> int:
    """Bind a server's port, with TLS or without; returns the port.

    Raises:
        ConfigError: it cannot be bound, or the files cannot be used.

    """
    secret = None if credentials is None else Reader(credentials).credentials()
    try:
        if secret is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, secret))
    except RuntimeError as error:
        raise ConfigError(f"{flag}: {address} cannot be bound; is it in use?") from error


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can connect to an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def authority(host: str, port: int) -> str:
    """Host and port as gRPC takes them: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def _stat(path: Path) -> Any:
    try:
        return path.stat()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _read(credentials: Credentials) -> _Read:
    """Checked: the key is the certificate's, and the authorities are some."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.set_alpn_protocols(["h2"])
    read = _Read(
        _bytes(credentials.key),
        _bytes(credentials.certificate),
        None if credentials.clients is None else _bytes(credentials.clients),
        context,
    )
    try:
        # A password would be asked for on the terminal, and a server has none.
        context.load_cert_chain(credentials.certificate, credentials.key, password=lambda: b"")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ConfigError(
            f"{credentials.certificate}: not a certificate in PEM whose key without a password is "
            f"{credentials.key}"
        ) from error
    if read.clients is not None:
        try:
            context.load_verify_locations(cadata=read.clients.decode("ascii"))
            context.verify_mode = ssl.CERT_REQUIRED
        except (ssl.SSLError, ValueError) as error:
            raise ConfigError(
                f"{credentials.clients}: not certificates of authorities in PEM"
            ) from error
    return read


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
