r"""Bundles on disk.

A bundle is a directory of plain files, without folders:

    manifest.json     what it is, and size and SHA-256 of every file except itself and the signature
    signature.json    {"algorithm": "ed25519", "public_key": hex, "signature": hex} over
                      "firewall bundle manifest v1\0" + the bytes of manifest.json
    *.onnx            graphs
    calibration.json, labels.json, selftest.npz, evaluation.json, MODEL_CARD.md

Opening checks everything before anything is used, in this order: the listing (names, plain files,
size caps), the signature over the manifest by a trusted key, the manifest's schema, that the key is
trusted for this model, that the directory holds exactly the manifest's files, each hash, and that
graphs are self-contained and have no control flow. The returned bytes are those that were hashed;
nothing is read twice.

Not checked: that the model is a good one, for which the signer vouches, and that the bundle is
recent (`firewall.bundle.versions`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from firewall.bundle.manifest import FILE_PATTERN, FileEntry, Manifest
from firewall.bundle.onnx_file import check_graph
from firewall.bundle.signing import HEX_KEY, Signer, TrustedKeys, verify
from firewall.documents import parse_json
from firewall.errors import (
    BundleAltered,
    BundleError,
    BundleMalformed,
    BundleMissing,
    BundleTooLarge,
    BundleUntrusted,
)

MANIFEST = "manifest.json"
SIGNATURE = "signature.json"

#: Size caps in bytes by file name or ending; the last one is for all other files.
CAPS: Mapping[str, int] = {
    MANIFEST: 1 << 20,
    SIGNATURE: 1 << 12,
    ".onnx": 1 << 30,
    ".json": 1 << 26,
    ".npz": 1 << 26,
    ".md": 1 << 20,
    "": 1 << 20,
}
#: Files that a bundle may have, manifest and signature included.
MAX_FILES = 66
#: Files that every bundle has.
REQUIRED = frozenset({"calibration.json", "labels.json", "selftest.npz", "MODEL_CARD.md"})


@dataclass(frozen=True)
class Bundle:
    """A bundle that has passed every check.

    Attributes:
        manifest: its manifest.
        files: the hashed bytes of every file in the manifest.
        digest: SHA-256 of the manifest, which fixes everything else.
        signer: public key, 64 hexadecimal digits.

    """

    manifest: Manifest
    files: Mapping[str, bytes]
    digest: str
    signer: str

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, in order."""
        names = parse_json(self.files["labels.json"], "labels.json")
        if not isinstance(names, list) or len(names) != self.manifest.classifier.classes:
            raise BundleMalformed(
                f"labels.json: expected a list of {self.manifest.classifier.classes} names"
            )
        return tuple(str(name) for name in names)


def write_bundle(
    target: Path, manifest: Manifest, files: Mapping[str, bytes], signer: Signer
) -> str:
    """Write a signed bundle, completely or not at all; returns its digest.

    Args:
        target: a directory that does not exist yet.
        manifest: its `files` are filled in here.
        files: content by name.
        signer: key that signs it.

    Raises:
        BundleError: the target exists or cannot be written, or `open_bundle` would refuse a file.

    """
    for name, data in files.items():
        if not re.match(FILE_PATTERN, name) or name in (MANIFEST, SIGNATURE):
            raise BundleMalformed(f"{name}: not a name that a file of a bundle may have")
        _check_cap(name, len(data))
        if name.endswith(".onnx"):
            check_graph(name, data)
    entries = {
        name: FileEntry(size=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in sorted(files.items())
    }
    text = manifest.model_copy(update={"files": entries}).to_json()
    signature = {
        "algorithm": "ed25519",
        "public_key": signer.public,
        "signature": signer.sign(text).hex(),
    }
    if target.exists():
        raise BundleError(f"{target} exists already; remove it or choose another place")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            for name, data in {
                **files,
                MANIFEST: text,
                SIGNATURE: (json.dumps(signature, indent=1, allow_nan=False) + "\n").encode(),
            }.items():
                with open(draft / name, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            draft.chmod(0o755)
            os.rename(draft, target)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    except OSError as error:
        raise BundleError(f"{target} cannot be written: {error.strerror}") from error
    return hashlib.sha256(text).hexdigest()


def open_bundle(path: Path, trusted: TrustedKeys | Collection[str]) -> Bundle:
    """Check everything about a bundle and read it.

    Args:
        path: its directory.
        trusted: keys that may sign it; bare public keys are trusted for every model.

    Raises:
        BundleError: the class and the text say what is wrong with which file.

    """
    if path.is_dir() and not any((path / name).exists() for name in (MANIFEST, SIGNATURE)):
        raise BundleAltered(
            f"{path}: not a bundle, it holds no {MANIFEST}; firewall guard makes one at its --out"
        )
    sizes = _listing(path)
    for name in (MANIFEST, SIGNATURE):
        if name not in sizes:
            raise BundleAltered(f"{name}: missing")
    if not isinstance(trusted, TrustedKeys):
        trusted = TrustedKeys.of(*trusted)
    text = _read(path, MANIFEST, sizes[MANIFEST])
    public = _check_signature(_read(path, SIGNATURE, sizes[SIGNATURE]), text, trusted)
    manifest = Manifest.from_json(text)
    if not trusted.trusts(public, manifest.name):
        raise BundleUntrusted(
            f"{SIGNATURE}: signed by {public}, which is trusted for models named "
            f"{' or '.join(trusted.patterns(public))}, but not for {manifest.name!r}"
        )
    _check_names(manifest, sizes)
    files: dict[str, bytes] = {}
    for name, entry in manifest.files.items():
        if sizes[name] != entry.size:
            raise BundleAltered(f"{name}: {sizes[name]} bytes, signed as {entry.size}")
        data = _read(path, name, entry.size)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise BundleAltered(f"{name}: not the file that was signed")
        files[name] = data
    for name, data in files.items():
        if name.endswith(".onnx"):
            check_graph(name, data)
    return Bundle(manifest, files, hashlib.sha256(text).hexdigest(), public)


def _listing(path: Path) -> dict[str, int]:
    """Sizes by name, after checking that every entry is a plain file of allowed name and size."""
    sizes: dict[str, int] = {}
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if len(sizes) >= MAX_FILES:
                    raise BundleAltered(f"{path.name}: more than {MAX_FILES} files")
                if not re.match(FILE_PATTERN, entry.name):
                    raise BundleAltered(f"{entry.name!r}: not a name that a file may have")
                status = entry.stat(follow_symlinks=False)
                if not stat.S_ISREG(status.st_mode):
                    raise BundleAltered(f"{entry.name}: not a plain file")
                _check_cap(entry.name, status.st_size)
                sizes[entry.name] = status.st_size
    except FileNotFoundError as error:
        raise BundleMissing(f"{path}: no such directory") from error
    except NotADirectoryError as error:
        raise BundleMissing(
            f"{path}: a bundle is a directory, as firewall guard makes one at its --out"
        ) from error
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from error
    return sizes


def _check_cap(name: str, size: int) -> None:
    cap = CAPS.get(name)
    if cap is None:
        cap = next(value for ending, value in CAPS.items() if name.endswith(ending))
    if size > cap:
        raise BundleTooLarge(f"{name}: {size} bytes, over the cap of {cap}")


def _read(path: Path, name: str, size: int) -> bytes:
    """Read a file, at most one byte beyond its size, so that a growing file cannot fill memory."""
    try:
        # A link that replaced the file after the listing is not followed.
        descriptor = os.open(path / name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(size + 1)
    except OSError as error:
        raise BundleAltered(f"{name}: cannot be read: {error.strerror}") from error
    if len(data) != size:
        raise BundleAltered(f"{name}: changed while it was read")
    return data


def _check_signature(data: bytes, manifest: bytes, trusted: TrustedKeys) -> str:
    body = parse_json(data, SIGNATURE)
    try:
        algorithm = body["algorithm"]
        public = str(body["public_key"])
        signature = bytes.fromhex(body["signature"])
    except (ValueError, KeyError, TypeError) as error:
        raise BundleMalformed(f"{SIGNATURE}: not a signature") from error
    if algorithm != "ed25519" or not HEX_KEY.match(public) or len(body) != 3:
        raise BundleMalformed(f"{SIGNATURE}: not an ed25519 signature")
    if not trusted.patterns(public):
        raise BundleUntrusted(
            f"{SIGNATURE}: signed by {public}, which is not trusted; if you know whose key it is, "
            "put it into a .pub file and give that with --trust"
        )
    verify(public, signature, manifest)
    return public


def _check_names(manifest: Manifest, sizes: Mapping[str, int]) -> None:
    for name in manifest.files:
        if not re.match(FILE_PATTERN, name) or name in (MANIFEST, SIGNATURE):
            raise BundleMalformed(f"manifest.json: file name {name!r} is not allowed")
    found = set(sizes) - {MANIFEST, SIGNATURE}
    missing = sorted(set(manifest.files) - found)
    if missing:
        raise BundleAltered(f"{missing[0]}: missing")
    extra = sorted(found - set(manifest.files))
    if extra:
        raise BundleAltered(f"{extra[0]}: not in the manifest")
    graphs = {"embedded": {"cheap.onnx"}, "file": {"model.onnx"}}.get(
        manifest.classifier.kind, set()
    )
    for name in sorted(REQUIRED | graphs):
        if name not in manifest.files:
            raise BundleMalformed(f"manifest.json: a bundle has a file {name!r}")
