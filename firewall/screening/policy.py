"""What the operator decides: read from TOML, changed without a restart."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from firewall.errors import ConfigError


class Exclusion(BaseModel):
    """What is not screened. Given fields must all match; at least one is given.

    With `detector`, that detector or monitor is left out and the others keep their promise;
    without, the request is not screened at all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Yours, to tell exclusions apart.
    id: str = Field(min_length=1, max_length=64)
    model: str | None = None
    #: As the audit log names it: `cert:NAME`, `token:NAME`, or an address without port.
    client: str | None = None
    detector: str | None = None

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if self.model is None and self.client is None and self.detector is None:
            raise ValueError("names no model, client or detector")
        return self

    def matches(self, model: str, client: str) -> bool:
        """Whether the exclusion speaks about a request."""
        return self.model in (None, model) and self.client in (None, client)


class MonitorSpec(BaseModel):
    """`[[monitors]]`: one that remembers requests, and from which score on a row is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Yours; the reason that audit log and answers give, and what exclusions name.
    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,63}$")
    #: Entry-point name.
    plugin: str = Field(min_length=1, max_length=64)
    #: A row with this score or more is refused.
    threshold: float = Field(allow_inf_nan=False)
    #: Of the plugin.
    config: dict[str, Any] = Field(default_factory=dict)


class Policy(BaseModel):
    """How statistics become verdicts, and how much of them anyone is told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: `enforce` refuses, `monitor` flags and answers, `off` does not screen.
    mode: Literal["enforce", "monitor", "off"] = "enforce"
    #: Percent of requests that are screened; 0 is an instant way back.
    sample: float = Field(default=100, ge=0, le=100)
    #: Share of clean rows that may be refused; calibration promises it or refuses.
    false_positive_rate: float = Field(default=0.01, gt=0, lt=0.5)
    #: 1: cheap statistics only. 2: adds the views. 3: adds disagreement with a robust guard model.
    #: 4: besides, accepts only what carries a certificate, whatever that costs in clean rows.
    paranoia: Literal[1, 2, 3, 4] = 2
    #: What paranoia 4 asks for: L-infinity, where values lie in [0, 1]. Half of the radius that the
    #: bundle is meant for when left out. If a clean row is certified at r and what it was turned
    #: into is too, and they are within 2 r of each other, then both have one class. It speaks of
    #: what is screened: `sample` and `exclusions` let rows pass without.
    certified_radius: float | None = Field(default=None, gt=0, lt=1)
    #: Whether `Certify` is answered: a radius is a distance, which an attacker can follow. When
    #: left out, where `outputs` are in full: those tell as much.
    certify: bool | None = None
    #: What a stage that fails means for its row.
    on_fault: Literal["reject", "accept"] = "reject"
    #: `diagnostics` answers statistics and p-values, which are what an attacker optimises against.
    disclose: Literal["verdict", "diagnostics"] = "verdict"
    #: The classifier's outputs in full, rounded to 0.01 of probability, or the top class alone.
    outputs: Literal["full", "rounded", "label"] = "full"
    exclusions: tuple[Exclusion, ...] = ()
    #: What remembers requests, beside the detectors of the bundle.
    monitors: tuple[MonitorSpec, ...] = ()

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [monitor.name for monitor in self.monitors]
        if len(set(names)) != len(names):
            raise ValueError("two monitors have one name")
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
            ConfigError: naming the key, its value and what would be right.

        """
        try:
            return cls.parse(path.read_text())
        except OSError as error:
            raise ConfigError(f"policy: {path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"policy: {path} is not UTF-8 text") from error

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Read TOML text; errors as in `load`."""
        try:
            return cls.model_validate(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"policy: not TOML: {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "(whole)"
            raise ConfigError(
                f"policy, key {key!r}: {first['msg']}, got {first['input']!r}"
            ) from error

    @property
    def certificates(self) -> bool:
        """Whether `Certify` is answered."""
        return self.outputs == "full" if self.certify is None else self.certify

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that name this policy in the audit log."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    def applied(self, model: str, client: str) -> tuple[str, ...]:
        """Ids of the exclusions that hold for a request."""
        return tuple(one.id for one in self.exclusions if one.matches(model, client))

    def active(self, detectors: tuple[str, ...], model: str, client: str) -> frozenset[str] | None:
        """Names of the detectors that count for a request; None when it is not screened.

        Args:
            detectors: those that count at this policy's level of paranoia.
            model: name asked for.
            client: the client's address.

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
