"""Name the client of a request by its certificate, its token, or its address, in that order."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from firewall.documents import parse_toml
from firewall.errors import ConfigError, Unauthenticated

_NAME = re.compile(r"^[A-Za-z0-9_-]{1,64}\Z")
_HASH = re.compile(r"^[0-9a-f]{64}\Z")
_SCHEME = "bearer "


class Tokens:
    """Names of clients by the SHA-256 of their tokens. Immutable.

    A plain hash is enough, because tokens are 256 random bits (`entry`) and not passwords.
    """

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self._hashes = {name: bytes.fromhex(text) for name, text in hashes.items()}

    @classmethod
    def load(cls, path: Path) -> Tokens:
        """Read a TOML file: under `[clients]`, `name = "SHA-256 of the token, in hexadecimal"`.

        Raises:
            ConfigError: it is none.

        """
        try:
            body = parse_toml(path.read_bytes(), f"--tokens: {path}")
        except OSError as error:
            raise ConfigError(f"--tokens: {path} cannot be read: {error.strerror}") from error
        clients = body.get("clients")
        if not isinstance(clients, dict) or not clients or len(body) != 1:
            raise ConfigError(f"--tokens: {path}: expected one table, [clients], with names in it")
        for name, text in clients.items():
            _check_name(name, f"--tokens: {path}")
            if not isinstance(text, str) or not _HASH.match(text):
                raise ConfigError(
                    f"--tokens: {path}: {name}: expected 64 hexadecimal digits, as firewall token "
                    "prints them"
                )
        if len(set(clients.values())) != len(clients):
            raise ConfigError(f"--tokens: {path}: two clients have one token")
        return cls(clients)

    @staticmethod
    def entry(name: str) -> tuple[str, str]:
        """Draw a token; returns it and its line for the file.

        Raises:
            ConfigError: the name is none.

        """
        _check_name(name, "name")
        token = secrets.token_urlsafe(32)
        return token, f'{name} = "{hashlib.sha256(token.encode()).hexdigest()}"'

    def name(self, token: str) -> str | None:
        """Name of the client with a token; takes equally long for unknown tokens."""
        given = hashlib.sha256(token.encode()).digest()
        found = None
        for name, known in self._hashes.items():
            if hmac.compare_digest(given, known):
                found = name
        return found


class Authenticator:
    """Names the client of a request: `cert:NAME`, `token:NAME`, or its address."""

    def __init__(
        self, tokens: Callable[[], Tokens] | None = None, *, allow_anonymous: bool = True
    ) -> None:
        """Decide whom to believe.

        Args:
            tokens: gives the tokens that are valid now; None accepts no token.
            allow_anonymous: whether clients may go without certificate and token.

        """
        self._tokens, self._allow_anonymous = tokens, allow_anonymous

    def client(
        self, address: str, headers: Mapping[str, str | bytes], certificate: str | None
    ) -> str:
        """Name the client.

        Args:
            address: of the client, without port.
            headers: of the request, by lower-case name.
            certificate: name in the client's verified certificate, if it showed one.

        Raises:
            Unauthenticated: the token is unknown, or there is neither token nor certificate and
                one is required.

        """
        if certificate is not None:
            return f"cert:{certificate}"
        if self._tokens is not None:
            header = headers.get("authorization", "")
            if isinstance(header, str) and header[: len(_SCHEME)].lower() == _SCHEME:
                name = self._tokens().name(header[len(_SCHEME) :].strip())
                if name is None:
                    raise Unauthenticated("authorization: the token is unknown")
                return f"token:{name}"
        if not self._allow_anonymous:
            raise Unauthenticated("authorization: expected 'Bearer' and a token")
        return address


def _check_name(name: str, where: str) -> None:
    # As a bare key of TOML has it: a dot would be a table.
    if not _NAME.match(name):
        raise ConfigError(f"{where}: {name!r}; expected 1 to 64 letters, digits, '_' and '-'")


def plain_address(host: str) -> str:
    """The IPv4 address of a client that came to a socket of both families."""
    return host.removeprefix("::ffff:") if host.startswith("::ffff:") and "." in host else host


@lru_cache(maxsize=1024)
def peer_address(peer: str) -> str:
    """Address of a gRPC peer such as `ipv4:127.0.0.1:5000` or `ipv6:%5B::1%5D:5000`."""
    kind, _, rest = unquote(peer).partition(":")
    if kind in ("ipv4", "ipv6"):
        return plain_address(rest.rpartition(":")[0].strip("[]"))
    # The peer of a Unix socket has no name.
    return "socket" if kind == "unix" else kind or "unknown"


def certificate_name(auth: Mapping[str, Any]) -> str | None:
    """First alternative name in a gRPC peer's certificate, or its common name."""
    for key in ("x509_subject_alternative_name", "x509_common_name"):
        for value in auth.get(key, ()):
            text: str = value.decode(errors="replace")
            if text:
                return text[:256]
    return None
