"""Ed25519 signatures (RFC 8032) and the keys that are trusted.

A user has one signing key, created on first use, and trusts its public half. Other signers are
trusted by adding their public key (64 hexadecimal digits in a `.pub` file), for every model or
for the models of certain names.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from firewall.documents import read_text
from firewall.errors import BundleUntrusted, ConfigError
from firewall.private_files import make_private_folder, tighten
from firewall.user_folders import CONFIG_DIR, config_dir

#: Signed before the manifest, so that a signature for this cannot serve for anything else.
CONTEXT = b"firewall bundle manifest v1\0"
#: A public key in text.
HEX_KEY = re.compile(r"^[0-9a-f]{64}\Z")
#: Pattern of model names before `=` in `--trust`. A path that has a `=` is written with a `/`.
_NAME_PATTERN = re.compile(r"[A-Za-z0-9._*?!\[\]-]{1,128}")


@dataclass(frozen=True)
class Signer:
    """A private key that signs manifests."""

    key: Ed25519PrivateKey

    @classmethod
    def generate(cls) -> Signer:
        """Create a new key."""
        return cls(Ed25519PrivateKey.generate())

    @property
    def public(self) -> str:
        """The public key, 64 hexadecimal digits."""
        return self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()

    def sign(self, manifest: bytes) -> bytes:
        """Sign the bytes of a manifest; returns 64 bytes."""
        return self.key.sign(CONTEXT + manifest)


def verify(public: str, signature: bytes, manifest: bytes) -> None:
    """Check the signature of a manifest.

    Raises:
        BundleUntrusted: the key did not make this signature of this manifest.

    """
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
        key.verify(signature, CONTEXT + manifest)
    except (InvalidSignature, ValueError) as error:
        raise BundleUntrusted(
            f"manifest.json: the signature is not that of key {public[:16]}…"
        ) from error


def user_signer(directory: Path | None = None) -> Signer:
    """Read the user's signing key; on first use, create it (mode 0600) and trust it.

    A key file that other users may read is tightened.

    Raises:
        ConfigError: the key cannot be read or created, or is not an Ed25519 key.

    """
    directory = directory or config_dir()
    path = directory / "signing.key"
    try:
        if not path.exists():
            _create_folder(directory)
            pem = Signer.generate().key.private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
            )
            # Linked and not renamed: of two processes that start together, the first one wins.
            _put(path, pem, os.link)
        tighten(path)
        signer = _load_private(path)
        own = directory / "trusted" / "self.pub"
        _create_folder(own.parent)
        if not own.exists() or own.read_text(encoding="utf-8").strip() != signer.public:
            _put(own, (signer.public + "\n").encode(), os.replace)
        return signer
    except OSError as error:
        raise ConfigError(
            f"signing key: {path} cannot be used: {error.strerror}; {CONFIG_DIR} names another "
            "folder"
        ) from error


def _create_folder(path: Path) -> None:
    # An existing folder keeps its mode: a server that runs as another user reads public keys there.
    if not path.exists():
        make_private_folder(path)


def _put(path: Path, data: bytes, place: Callable[[str, Path], None]) -> None:
    """Write a file of mode 0600 under a temporary name, and then put it in its place."""
    descriptor, draft = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        with contextlib.suppress(FileExistsError):
            place(draft, path)
    finally:
        Path(draft).unlink(missing_ok=True)


def _load_private(path: Path) -> Signer:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except ValueError as error:
        raise ConfigError(f"signing key: {path} is not a PEM private key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"signing key: {path} is not an Ed25519 key")
    return Signer(key)


@dataclass(frozen=True)
class TrustedKeys:
    """Public keys, and the models whose bundles each of them may sign.

    Attributes:
        entries: pairs of a public key (64 hexadecimal digits) and a pattern of model names
            (`fnmatch`, case-sensitive); `*` is every model.

    """

    entries: frozenset[tuple[str, str]] = frozenset()

    @classmethod
    def of(cls, *keys: str) -> TrustedKeys:
        """Trust keys for every model."""
        return cls(frozenset((key, "*") for key in keys))

    def patterns(self, key: str) -> tuple[str, ...]:
        """Patterns of the model names for which a key is trusted; empty for an unknown key."""
        return tuple(sorted(pattern for known, pattern in self.entries if known == key))

    def trusts(self, key: str, model: str) -> bool:
        """Whether a key may sign the bundles of a model."""
        return any(fnmatchcase(model, pattern) for pattern in self.patterns(key))


def trusted_keys(extra: Iterable[str | Path] = (), directory: Path | None = None) -> TrustedKeys:
    """Read the keys that the user trusts.

    Args:
        extra: values of `--trust`: `signer.pub` is trusted for every model, `NAME=signer.pub` for
            the models whose names match NAME (`./a=b.pub` is a path). A `Path` is a path.
        directory: configuration folder, whose `trusted/*.pub` are trusted for every model.

    Raises:
        ConfigError: a file does not hold a public key.

    """
    named = [_parse_trust(value) for value in extra]
    try:
        folder = (directory or config_dir()) / "trusted"
        named += [("*", path) for path in sorted(folder.glob("*.pub"))]
    except ConfigError:
        # Nothing of a home is needed where keys are named.
        if not named:
            raise
    return TrustedKeys(frozenset((_read_public(path), pattern) for pattern, path in named))


def _parse_trust(value: str | Path) -> tuple[str, Path]:
    """`NAME=signer.pub` to the pattern and the path; the pattern of a bare path is `*`."""
    if isinstance(value, str):
        pattern, separator, path = value.partition("=")
        if separator and path and _NAME_PATTERN.fullmatch(pattern):
            return pattern, Path(path)
    return "*", Path(value)


def _read_public(path: Path) -> str:
    text = read_text(path, "trusted key").strip()
    if not HEX_KEY.match(text):
        raise ConfigError(
            f"trusted key: {path} does not hold a public key of 64 hexadecimal digits"
        )
    return text
