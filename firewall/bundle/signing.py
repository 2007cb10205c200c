"""Ed25519 signatures (RFC 8032) and whom to trust.

A user has one signing key, made on first use, and trusts its public half; other signers are
trusted by adding their public key (64 hexadecimal digits in a `.pub` file).
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from platformdirs import user_config_path

from firewall.errors import BundleUntrusted, ConfigError

#: Signed before the manifest, so that a signature for this cannot serve for anything else.
CONTEXT = b"firewall bundle manifest v1\0"
#: A public key in text.
HEX_KEY = re.compile(r"^[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class Signer:
    """A private key that signs manifests."""

    key: Ed25519PrivateKey

    @classmethod
    def generate(cls) -> Signer:
        """A new key."""
        return cls(Ed25519PrivateKey.generate())

    @property
    def public(self) -> str:
        """The public key, 64 hexadecimal digits."""
        return self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()

    def sign(self, manifest: bytes) -> bytes:
        """64 bytes over the bytes of a manifest."""
        return self.key.sign(CONTEXT + manifest)


def verify(public: str, signature: bytes, manifest: bytes) -> None:
    """Check a signature.

    Raises:
        BundleUntrusted: it is not that key's signature of that manifest.

    """
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
        key.verify(signature, CONTEXT + manifest)
    except (InvalidSignature, ValueError) as error:
        raise BundleUntrusted(
            f"manifest.json: the signature is not that of key {public[:16]}…"
        ) from error


def config_dir() -> Path:
    """Where a user's keys lie: `$FIREWALL_CONFIG_DIR`, or the platform's configuration folder."""
    named = os.environ.get("FIREWALL_CONFIG_DIR")
    return Path(named) if named else user_config_path("firewall")


def user_signer(directory: Path | None = None) -> Signer:
    """The user's signing key, made (readable by the user alone) and trusted on first use."""
    directory = directory or config_dir()
    path = directory / "signing.key"
    try:
        if not path.exists():
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            pem = Signer.generate().key.private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
            )
            # Linked and not renamed: of two processes that start together, one key wins.
            _put(path, pem, os.link)
        signer = _load_private(path)
        own = directory / "trusted" / "self.pub"
        own.parent.mkdir(exist_ok=True)
        if not own.exists() or own.read_text().strip() != signer.public:
            _put(own, (signer.public + "\n").encode(), os.replace)
        return signer
    except OSError as error:
        raise ConfigError(f"signing key: {path} cannot be used: {error.strerror}") from error


def _put(path: Path, data: bytes, place: Callable[[str, Path], None]) -> None:
    """Write a file whole, readable by the user alone, and then put it in its place."""
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


def trusted_keys(extra: Iterable[Path] = (), directory: Path | None = None) -> frozenset[str]:
    """Public keys that the user trusts: `trusted/*.pub` of the configuration folder, and `extra`.

    Raises:
        ConfigError: a file is not a public key.

    """
    folder = (directory or config_dir()) / "trusted"
    paths = [*sorted(folder.glob("*.pub")), *extra]
    keys: set[str] = set()
    for path in paths:
        try:
            text = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"trusted key: {path} cannot be read") from error
        if not HEX_KEY.match(text):
            raise ConfigError(
                f"trusted key: {path} does not hold a public key of 64 hexadecimal digits"
            )
        keys.add(text)
    return frozenset(keys)
