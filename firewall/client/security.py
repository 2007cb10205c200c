"""How a client proves who it is, and knows whom it talks to."""

from __future__ import annotations

from dataclasses import dataclass, field

import grpc

from firewall.protocol.addresses import check_address, proxy_options

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Tls:
    """Certificates of a connection, in PEM.

    Attributes:
        authorities: of the server; None takes the system's.
        certificate: the client's own, where the server asks for one.
        key: its private key.

    """

    authorities: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)

    def credentials(self) -> grpc.ChannelCredentials:
        """As gRPC takes them."""
        return grpc.ssl_channel_credentials(self.authorities, self.key, self.certificate)


def channel(
    address: str, tls: Tls | None, options: tuple[tuple[str, int], ...] = ()
) -> grpc.Channel:
    """A connection; without TLS where `tls` is None.

    Raises:
        ConfigError: the address is not `host:port`.

    """
    options = (*options, *proxy_options(check_address(address)))
    if tls is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, tls.credentials(), options=options)


def bearer(token: str) -> Metadata:
    """Metadata that name a client by its token; none for an empty one."""
    return (("authorization", f"Bearer {token}"),) if token else ()
