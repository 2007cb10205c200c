"""What can be evaluated, and can be sent to another process; `onnx_target` is another of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from firewall.attack.served_guard import ServedGuard
from firewall.attack.victim import GuardedVictim, Victim
from firewall.bundle.store import Bundle
from firewall.guard.wire_input import WireInput
from firewall.screening.calibration import Calibration
from firewall.screening.compiled import CompiledGuard
from firewall.screening.live import LiveGuard
from firewall.screening.policy import Policy


class Target(Protocol):
    """Something to evaluate, as data."""

    @property
    def name(self) -> str:
        """For headlines."""

    @property
    def digest(self) -> str:
        """SHA-256 of what it is."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""

    @property
    def classes(self) -> int:
        """How many."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Their names; numbers where there are none."""

    @property
    def note(self) -> str | None:
        """What is said before the evaluation; None where there is nothing to say."""

    def victim(self, rate: float) -> Victim:
        """The thing itself, judged at a false-positive rate."""


@dataclass(frozen=True)
class BundleTarget:
    """A checked bundle."""

    bundle: Bundle

    @property
    def name(self) -> str:
        """Name and version."""
        return f"{self.bundle.manifest.name} {self.bundle.manifest.version}"

    @property
    def digest(self) -> str:
        """Of the manifest."""
        return self.bundle.digest

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        spec = self.bundle.manifest.input
        return (spec.channels, spec.height, spec.width)

    @property
    def classes(self) -> int:
        """Of the classifier inside."""
        return self.bundle.manifest.classifier.classes

    @property
    def labels(self) -> tuple[str, ...]:
        """Of the bundle."""
        return tuple(self.bundle.labels)

    @property
    def note(self) -> None:
        """Nothing: its outputs are what this project made them."""

    def victim(self, rate: float) -> Victim:
        """Served graphs, served decisions."""
        manifest = self.bundle.manifest
        calibration = Calibration.from_json(self.bundle.files["calibration.json"])
        wire = WireInput(manifest.input)
        live = LiveGuard(
            # As many threads as torch has: a process of several keeps to its share of cores.
            CompiledGuard(self.bundle.files, threads=torch.get_num_threads()),
            calibration,
            # Everything that the guard has.
            Policy(false_positive_rate=rate, paranoia=3 if calibration.guard_model else 2),
            model=manifest.name,
            log_outputs=bool(manifest.guard.of("ensemble")),
            radius=manifest.threat_model.radius if manifest.threat_model.norm == "linf" else 0.0,
        )
        return GuardedVictim(
            ServedGuard(self.bundle.files, manifest.input, calibration),
            live,
            calibration.cascade(rate),
            lambda x: np.ascontiguousarray(wire.back(x).numpy()),
            eight_bit=manifest.input.datatype == "UINT8",
        )
