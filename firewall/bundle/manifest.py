"""The manifest: what a bundle says about itself, and the hash of every other file in it."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field, ValidationError

from firewall.bundle.spec import GuardSpec, InputSpec, Preprocessing, Spec
from firewall.errors import BundleMalformed, BundleVersion

#: The version this program writes and the only one that it reads.
SCHEMA_VERSION = 1

#: A file of a bundle lies directly in it: no folders, so no path can lead out.
FILE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)+\Z"


class FileEntry(Spec):
    """Size and hash of one file."""

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class ClassifierSpec(Spec):
    """The classifier behind the guard."""

    kind: Literal["embedded", "remote"]
    #: What it is, for people.
    architecture: str = Field(max_length=256)
    classes: int = Field(ge=2, le=1_000_000)
    taps: tuple[str, ...] = ()


class ThreatModel(Spec):
    """Against whom the bundle claims something. Empty `evaluated` claims nothing."""

    norm: Literal["linf", "l2"]
    #: In units of the image batch, where values lie in [0, 1].
    radius: float = Field(gt=0)
    #: Attackers whom the figures in the model card cover.
    evaluated: tuple[Literal["oblivious", "transfer", "black-box", "adaptive"], ...]


class Provenance(Spec):
    """Where a bundle comes from."""

    #: When it was made, ISO 8601 in UTC.
    created: str
    #: Program and version that made it.
    producer: str
    #: Hash of everything that the recipe fixes; equal recipes give equal digests.
    recipe: str
    seed: int
    #: Versions of the libraries that took part.
    libraries: dict[str, str] = Field(default_factory=dict)
    #: Files that took part, by part ("fit", "part-a", ...), as "name sha256" lines.
    data: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    #: Figures that fitting the stages gave, by stage.
    fitted: dict[str, dict[str, float]] = Field(default_factory=dict)


class Manifest(Spec):
    """`manifest.json`."""

    schema_version: Literal[1] = 1
    #: Model name under which it is served.
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    classifier: ClassifierSpec
    input: InputSpec
    #: Name of the output tensor, [N, classes] FP32.
    output: str = Field(default="logits", min_length=1, max_length=128)
    preprocessing: Preprocessing
    guard: GuardSpec
    threat_model: ThreatModel
    provenance: Provenance
    files: dict[str, FileEntry] = Field(max_length=64)

    def to_json(self) -> bytes:
        """As it lies in a bundle, and as it is signed."""
        return (json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, text: bytes) -> Manifest:
        """Read what `to_json` wrote.

        Raises:
            BundleVersion: the schema version is not ours.
            BundleMalformed: naming the key that is wrong.

        """
        try:
            body: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleMalformed(f"manifest.json: not JSON: {error}") from error
        if not isinstance(body, dict):
            raise BundleMalformed("manifest.json: not an object")
        version = body.get("schema_version")
        if version != SCHEMA_VERSION or isinstance(version, bool):
            raise BundleVersion(
                f"manifest.json: schema_version {version!r} is unknown; this program reads "
                f"{SCHEMA_VERSION}"
            )
        try:
            return cls.model_validate(body)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "(whole)"
            raise BundleMalformed(f"manifest.json, key {key!r}: {first['msg']}") from error
