"""TLS of one connection, without its socket."""

from __future__ import annotations

import ipaddress
import ssl
from typing import Any

#: Kinds of alternative names that are names.
_NAMES = ("DNS", "URI", "email", "IP Address")


class Secure:
    """A server's side of TLS: what came in, opened; what goes out, sealed."""

    def __init__(self, context: ssl.SSLContext) -> None:
        """Wait for the client's first words.

        Args:
            context: of a server, for HTTP/2.

        """
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._done = False
        #: What was to be sent before hands were shaken.
        self._early = b""
        #: Whether there is nothing to be had of this client.
        self.broken = False
        #: Of the client's certificate, which was checked, as gRPC writes it.
        self.auth: dict[str, list[bytes]] = {}

    def received(self, data: bytes) -> bytes:
        """What the client means by it."""
        self._incoming.write(data)
        opened: list[bytes] = []
        try:
            if not self._done:
                self._tls.do_handshake()
                self._shaken()
            while part := self._tls.read(1 << 16):
                opened.append(part)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self.broken = True
        return b"".join(opened)

    def sealed(self, data: bytes) -> bytes:
        """What is to be sent for it, and what TLS itself has to say."""
        if self._early or not self._done:
            data, self._early = self._early + data, b""
        if not self._done:
            self._early = data
        elif data and not self.broken:
            try:
                self._tls.write(data)
            except ssl.SSLError:
                self.broken = True
        return self._outgoing.read()

    def _shaken(self) -> None:
        if self._tls.selected_alpn_protocol() != "h2":
            # As gRPC: who speaks anything else has come to the wrong port.
            self.broken = True
            raise ssl.SSLWantReadError
        self._done = True
        certificate: Any = self._tls.getpeercert()
        if not certificate:
            return
        names = [
            str(ipaddress.ip_address(value)) if kind == "IP Address" else value
            for kind, value in certificate.get("subjectAltName", ())
            if kind in _NAMES
        ]
        common = [
            value
            for part in certificate.get("subject", ())
            for key, value in part
            if key == "commonName"
        ]
        self.auth = {
            "x509_subject_alternative_name": [name.encode() for name in names],
            "x509_common_name": [name.encode() for name in common],
        }
