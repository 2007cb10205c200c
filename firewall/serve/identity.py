"""Who asks: by certificate, by token, or by address, in that order."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

from firewall.errors import ConfigError, Unauthenticated

_NAME = re.compile(r"^[A-Za-z0-9_-]{1,64}\Z")
_HASH = re.compile(r"^[0-9a-f]{64}\Z")
_SCHEME = "bearer "


class Tokens:
    """Names of clients by the SHA-256 of their tokens.

    Tokens are drawn (`entry`) and not thought up: of 256 random bits a plain hash tells nothing.
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
            body = tomllib.loads(path.read_text())
        except OSError as error:
            raise ConfigError(f"--tokens: {path} cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"--tokens: {path} is not TOML: {error}") from error
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
        """A new token, and its line for the file.

        Raises:
            ConfigError: the name is none.

        """
        _check_name(name, "name")
        token = secrets.token_urlsafe(32)
        return token, f'{name} = "{hashlib.sha256(token.encode()).hexdigest()}"'

    def name(self, token: str) -> str | None:
        """Whose it is. Takes as long for a wrong one as for any."""
        given = hashlib.sha256(token.encode()).digest()
        found = None
        for name, known in self._hashes.items():
            if hmac.compare_digest(given, known):
                found = name
        return found


class Names(Protocol):
    """What says who asks."""

    def of(self, peer: str, metadata: Mapping[str, str | bytes], auth: Mapping[str, Any]) -> str:
        """The client's name; `Unauthenticated` when it may not ask."""
        ...


class Identity:
    """Names the client of a call: `cert:NAME`, `token:NAME`, or its address without port."""

    def __init__(self, tokens: Tokens | None = None, *, anonymous: bool = True) -> None:
        """Decide whom to believe.

        Args:
            tokens: known ones; None looks at none.
            anonymous: whether clients may go without certificate and token.

        """
        self._tokens, self._anonymous = tokens, anonymous

    def of(self, peer: str, metadata: Mapping[str, str | bytes], auth: Mapping[str, Any]) -> str:
        """The client's name.

        Args:
            peer: gRPC's, such as `ipv4:127.0.0.1:5000`.
            metadata: of the call.
            auth: gRPC's authentication context, whose certificate was checked.

        Raises:
            Unauthenticated: the token is unknown, or there is neither token nor certificate and
                one is asked for.

        """
        certified = _certified(auth)
        if certified is not None:
            return f"cert:{certified}"
        if self._tokens is not None:
            header = metadata.get("authorization", "")
            if isinstance(header, str) and header[: len(_SCHEME)].lower() == _SCHEME:
                name = self._tokens.name(header[len(_SCHEME) :].strip())
                if name is None:
                    raise Unauthenticated("authorization: the token is not known here")
                return f"token:{name}"
        if not self._anonymous:
            raise Unauthenticated("authorization: expected 'Bearer' and a token")
        return address_of(peer)


class SupervisedIdentity:
    """Believes one who has a secret about who asked it: a worker and its supervisor."""

    def __init__(self, secret: str, key: str) -> None:
        """Set what is believed.

        Args:
            secret: that both have.
            key: of the metadata that names who asks.

        """
        self._secret, self._key = secret.encode(), key

    def of(self, peer: str, metadata: Mapping[str, str | bytes], auth: Mapping[str, Any]) -> str:
        """Who asked the supervisor.

        Raises:
            Unauthenticated: it is not the supervisor that asks.

        """
        header, who = metadata.get("authorization", ""), metadata.get(self._key, "")
        given = header[len(_SCHEME) :] if isinstance(header, str) else ""
        if not hmac.compare_digest(given.encode(), self._secret) or not isinstance(who, str):
            raise Unauthenticated("authorization: this port is the supervisor's alone")
        return who


def _check_name(name: str, where: str) -> None:
    # As a bare key of TOML has it: a dot would be a table.
    if not _NAME.match(name):
        raise ConfigError(f"{where}: {name!r}; expected 1 to 64 letters, digits, '_' and '-'")


@lru_cache(maxsize=1024)
def address_of(peer: str) -> str:
    """`ipv4:127.0.0.1:5000` or `ipv6:%5B::1%5D:5000` to the address alone."""
    kind, _, rest = unquote(peer).partition(":")
    if kind in ("ipv4", "ipv6"):
        return rest.rpartition(":")[0].strip("[]")
    return kind or "unknown"


def _certified(auth: Mapping[str, Any]) -> str | None:
    """The first alternative name of a client's certificate, or its common name."""
    for key in ("x509_subject_alternative_name", "x509_common_name"):
        for value in auth.get(key, ()):
            text: str = value.decode(errors="replace")
            if text:
                return text[:256]
    return None
