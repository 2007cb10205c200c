"""The operator's policy, read from TOML. A running server takes a new one without a restart."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from firewall.bundle.versions import is_comparable
from firewall.documents import parse_toml, read_text
from firewall.errors import ConfigError
from firewall.validation import describe


class Exclusion(BaseModel):
    """`[[exclusions]]`: requests that are not screened, or not by one detector.

    An exclusion applies if all fields that it gives match; it gives at least one. With `detector`,
    that detector or monitor is skipped, and the others keep the promised false-positive rate.
    Without `detector`, the request is not screened at all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(
        min_length=1, max_length=64, description="Your name for the exclusion, for the audit log."
    )
    model: str | None = Field(default=None, description="Name of the requested model.")
    client: str | None = Field(
        default=None,
        description="The client as the audit log names it: `cert:NAME`, `token:NAME`, or an "
        "address without port.",
    )
    detector: str | None = Field(
        default=None,
        description="Name of the detector or monitor to skip; all of them when not set.",
    )

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if self.model is None and self.client is None and self.detector is None:
            raise ValueError("names no model, client or detector")
        return self

    def matches(self, model: str, client: str) -> bool:
        """Whether model and client of a request match this exclusion."""
        return self.model in (None, model) and self.client in (None, client)


class MonitorSpec(BaseModel):
    """`[[monitors]]`: a monitor, and the score from which it refuses a row."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        pattern=r"^[a-z][a-z0-9-]{0,63}$",
        description="Your name for the monitor. Audit log, answers and exclusions use it.",
    )
    plugin: str = Field(
        min_length=1,
        max_length=64,
        description="Name of the plugin, as `firewall plugins` lists it.",
    )
    threshold: float = Field(
        allow_inf_nan=False, description="Rows with at least this score are refused."
    )
    mode: Literal["enforce", "monitor"] = Field(
        default="enforce",
        description="`monitor` flags those rows and answers them, and no fault of the monitor "
        "refuses a row.",
    )
    config: dict[str, Any] = Field(default_factory=dict, description="Settings of the plugin.")


class Policy(BaseModel):
    """How statistics become verdicts, and how much of them is disclosed to clients."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["enforce", "monitor", "off"] = Field(
        default="enforce",
        description="`enforce` refuses suspected rows, `monitor` flags them and answers, `off` "
        "screens nothing.",
    )
    sample: float = Field(
        default=100,
        ge=0,
        le=100,
        description="Percent of requests that are screened; 0 turns screening off at once.",
    )
    false_positive_rate: float = Field(
        default=0.01,
        gt=0,
        lt=0.5,
        description="Share of clean rows that may be refused; the one that the bundle was made for "
        "when not set. A rate that its calibration cannot promise is an error.",
    )
    paranoia: Literal[1, 2, 3, 4] = Field(
        default=2,
        description="1: cheap statistics only. 2: adds the views. 3: adds disagreement with a "
        "robust guard model. 4: accepts, besides, only rows with a certificate, at any cost in "
        "refused clean rows.",
    )
    certified_radius: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Radius of the certificate that paranoia 4 requires: L-infinity, for values "
        "in [0, 1]; half of the radius in the bundle's threat model when not set. If a clean row "
        "and its modified copy are both certified at r and are within 2 r of each other, both have "
        "the same class. Rows that `sample` or `exclusions` leave out pass without a certificate.",
    )
    certify: bool | None = Field(
        default=None,
        description="Whether `Certify` is answered. A certified radius is a distance that an "
        'attacker can follow. When not set, it is answered if `outputs` is "full", which discloses '
        "as much.",
    )
    on_fault: Literal["reject", "accept"] = Field(
        default="reject", description="Verdict on a row whose screening failed."
    )
    disclose: Literal["verdict", "diagnostics"] = Field(
        default="verdict",
        description="`diagnostics` adds statistics and p-values to answers; an attacker can "
        "optimise against them.",
    )
    outputs: Literal["full", "rounded", "label"] = Field(
        default="full",
        description="The classifier's outputs in full, probabilities rounded to 0.01, or the top "
        "class alone.",
    )
    rows: Literal["all", "each"] = Field(
        default="all",
        description="What a suspected row means for its batch over the Open Inference Protocol: "
        "`all` refuses the whole request; `each` answers the other rows, withholds the suspected "
        "ones as NaN (null in JSON), and names every row's verdict in the response parameters.",
    )
    min_version: str | None = Field(
        default=None,
        description="Oldest version of a bundle that may be served; dotted numbers compare number "
        "by number.",
    )
    exclusions: tuple[Exclusion, ...] = Field(
        default=(), description="Requests that are not screened, or not by one detector."
    )
    monitors: tuple[MonitorSpec, ...] = Field(
        default=(),
        description="Monitors that compare requests over time, beside the detectors of the bundle.",
    )

    @field_validator("min_version")
    @classmethod
    def _comparable(cls, value: str | None) -> str | None:
        if value is not None and not is_comparable(value):
            raise ValueError("expected numbers separated by dots")
        return value

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [monitor.name for monitor in self.monitors]
        if len(set(names)) != len(names):
            raise ValueError("two monitors have the same name")
        return self

    @model_validator(mode="after")
    def _certain(self) -> Self:
        if self.paranoia == 4 and self.on_fault == "accept":
            raise ValueError("paranoia 4 accepts only what is certified; on_fault must be 'reject'")
        return self

    @classmethod
    def load(cls, path: Path) -> Policy:
        """Read a TOML file.

        Raises:
            ConfigError: the file cannot be read, or a key is wrong; the text names key and value.

        """
        return cls.parse(read_text(path, "policy"))

    @classmethod
    def of(cls, path: Path | None, mode: str | None, rate: float | None) -> Self:
        """Read a file, with a mode and a false-positive rate that override it.

        Args:
            path: TOML file; the default policy when None.
            mode: None keeps the file's.
            rate: None keeps the file's.

        Raises:
            ConfigError: as `load`, or naming the flag.

        """
        policy = cls.load(path) if path else cls()
        overrides = {"mode": mode, "false_positive_rate": rate}
        body = policy.model_dump(exclude_unset=True) | {
            key: value for key, value in overrides.items() if value is not None
        }
        try:
            return cls.model_validate(body)
        except ValidationError as error:
            names = " and ".join(
                f"--{key.replace('_', '-')}"
                for key, value in overrides.items()
                if value is not None
            )
            raise ConfigError(f"policy with {names} applied: {describe(error)}") from error

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Parse TOML text; errors as in `load`."""
        try:
            return cls.model_validate(parse_toml(text, "policy"))
        except ValidationError as error:
            raise ConfigError(f"policy: {describe(error)}") from error

    def for_bundle(self, promised_rate: float | None) -> Policy:
        """The same, with the rate that a bundle was made for where the operator set none."""
        if promised_rate is None or "false_positive_rate" in self.model_fields_set:
            return self
        return self.model_copy(update={"false_positive_rate": promised_rate})

    def watches(self, monitor: MonitorSpec) -> bool:
        """Whether rows that a monitor finds suspicious are flagged and answered."""
        return "monitor" in (self.mode, monitor.mode)

    @property
    def certificates(self) -> bool:
        """Whether `Certify` is answered."""
        return self.outputs == "full" if self.certify is None else self.certify

    @property
    def digest(self) -> str:
        """Identify this policy in the audit log, by 12 hexadecimal digits."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    def applied(self, model: str, client: str) -> tuple[str, ...]:
        """Ids of the exclusions that match a request."""
        return tuple(one.id for one in self.exclusions if one.matches(model, client))

    def active(self, detectors: tuple[str, ...], model: str, client: str) -> frozenset[str] | None:
        """Names of the detectors that screen a request; None if it is not screened.

        Args:
            detectors: all that are used at this policy's level of paranoia.
            model: name of the requested model.
            client: as the audit log names the client.

        """
        if self.mode == "off":
            return None
        names = set(detectors)
        for exclusion in self.exclusions:
            if exclusion.matches(model, client):
                if exclusion.detector is None:
                    return None
                names.discard(exclusion.detector)
        return frozenset(names)
