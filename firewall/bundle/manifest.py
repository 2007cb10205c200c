"""The manifest: description of a bundle, and size and hash of every other file in it."""

from __future__ import annotations

import json
import math
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from firewall.bundle.spec import (
    GuardSpec,
    InputSpec,
    Preprocessing,
    ScoreSpec,
    Spec,
    TensorSpec,
)
from firewall.documents import parse_json
from firewall.errors import BundleMalformed, BundleVersion
from firewall.validation import describe

#: The schema version that this program writes, and the only one that it reads.
SCHEMA_VERSION = 1

#: Files lie directly in the bundle: without folders, no path can lead out of it.
FILE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)+\Z"


class FileEntry(Spec):
    """Size and hash of one file."""

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class ClassifierSpec(Spec):
    """The classifier behind the guard.

    `embedded` is part of the guard's graphs; `file` is the graph `model.onnx` beside them, as its
    owner had it; `remote` is served elsewhere.
    """

    kind: Literal["embedded", "file", "remote"]
    #: Description for people.
    architecture: str = Field(max_length=256)
    classes: int = Field(ge=2, le=1_000_000)
    taps: tuple[str, ...] = ()


class ThreatModel(Spec):
    """Attackers that the bundle was measured against. Empty `evaluated` claims nothing."""

    norm: Literal["linf", "l2"]
    #: For image values in [0, 1].
    radius: float = Field(gt=0)
    #: Attackers that the figures in the model card cover.
    evaluated: tuple[Literal["oblivious", "transfer", "black-box", "adaptive"], ...]


class Provenance(Spec):
    """How a bundle was made."""

    #: Time of making, ISO 8601 in UTC.
    created: str
    #: Program and version that made it.
    producer: str
    #: Hash of all settings in the recipe; equal recipes have equal hashes.
    recipe: str
    seed: int
    #: Versions of the libraries used.
    libraries: dict[str, str] = Field(default_factory=dict)
    #: Data files by purpose ("fit", "part-a", ...), as "name sha256" lines.
    data: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    #: Figures from fitting the stages, by stage.
    fitted: dict[str, dict[str, float]] = Field(default_factory=dict)


class Manifest(Spec):
    """`manifest.json`."""

    schema_version: Literal[1] = 1
    #: Name under which the model is served. Trusted keys can be bound to it.
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    #: Compared with the policy's `min_version` and the live bundle's (`firewall.bundle.versions`).
    version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    classifier: ClassifierSpec
    input: InputSpec
    #: Name of the output tensor with the class scores, and how they are to be read.
    output: str = Field(default="logits", min_length=1, max_length=128)
    scores: ScoreSpec = ScoreSpec()
    #: Outputs of the classifier that pass through to clients as they are.
    other_outputs: tuple[TensorSpec, ...] = Field(default=(), max_length=16)
    preprocessing: Preprocessing
    guard: GuardSpec
    threat_model: ThreatModel
    #: Rate of false positives for which the bundle was made and evaluated: the policy's default.
    promised_rate: float | None = Field(default=None, gt=0, lt=0.5)
    provenance: Provenance
    files: dict[str, FileEntry] = Field(max_length=64)

    @property
    def score_shape(self) -> tuple[int, ...]:
        """Shape of one row's class scores, as clients see them."""
        shape = self.scores.shape
        return (self.classifier.classes,) if shape is None else shape

    @model_validator(mode="after")
    def _scores_fit(self) -> Self:
        count = math.prod(self.score_shape)
        if count != self.classifier.classes and (count, self.classifier.classes) != (1, 2):
            raise ValueError(
                f"scores: {list(self.score_shape)} holds {count} values a row for "
                f"{self.classifier.classes} classes"
            )
        return self

    def to_json(self) -> bytes:
        """Serialise, as stored in a bundle and as signed."""
        return (
            json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False)
            + "\n"
        ).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Manifest:
        """Parse a serialised manifest.

        Raises:
            BundleVersion: this program does not know the schema version.
            BundleMalformed: a key is wrong; the text names it.

        """
        body: Any = parse_json(text, "manifest.json")
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
            raise BundleMalformed(f"manifest.json: {describe(error)}") from error
