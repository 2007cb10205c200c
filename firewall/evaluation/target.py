"""What can be evaluated, and can be sent to another process; `onnx_target` is another of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from firewall.attack.served_guard import ServedGuard
from firewall.attack.victim import GuardedVictim, ServedVictim, Victim
from firewall.bundle.store import Bundle
from firewall.guard.classifier import Classifier
from firewall.guard.wire_input import WireInput
from firewall.screening.calibration import Calibration
from firewall.screening.classifier import SeparateClassifier
from firewall.screening.load import load_guard
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
        """Number of classes."""

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
    """A checked bundle, and where its classifier is served if it has none inside.

    Attributes:
        bundle: the bundle.
        upstream: opens its classifier, where that is served elsewhere.
        stand_in: a network of the same classes, for attackers who want gradients of such a one.

    """

    bundle: Bundle
    upstream: Callable[[], SeparateClassifier] | None = None
    stand_in: Classifier | None = None

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
    def note(self) -> str | None:
        """That a classifier elsewhere gives no gradient; None of one inside."""
        if self.bundle.manifest.classifier.kind != "remote":
            return None
        if self.stand_in is not None:
            return f"{self.name} is served elsewhere; gradients are of a stand-in"
        return f"{self.name} is served elsewhere; attacks that need gradients are left out"

    def victim(self, rate: float) -> Victim:
        """Served graphs, served decisions."""
        manifest = self.bundle.manifest
        calibration = Calibration.from_json(self.bundle.files["calibration.json"])
        wire = WireInput(manifest.input)
        live = load_guard(
            self.bundle,
            # Everything that the guard has.
            Policy(false_positive_rate=rate, paranoia=3 if calibration.guard_model else 2),
            # As many threads as torch has: a process of several keeps to its share of cores.
            threads=torch.get_num_threads(),
            classifier=None if self.upstream is None else self.upstream(),
        )

        def to_wire(x: Tensor) -> npt.NDArray[np.generic]:
            return np.ascontiguousarray(wire.back(x).numpy())

        eight_bit = manifest.input.datatype == "UINT8"
        if manifest.classifier.kind == "remote" and self.stand_in is None:
            return ServedVictim(live, to_wire, eight_bit=eight_bit)
        return GuardedVictim(
            ServedGuard.of(self.bundle, calibration, self.stand_in),
            live,
            calibration.cascade(rate),
            to_wire,
            eight_bit=eight_bit,
        )
