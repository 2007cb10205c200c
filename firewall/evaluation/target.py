"""What can be evaluated: a bundle, or an ONNX file. Each can be sent to another process."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from firewall.attack.onnx_module import OnnxModule
from firewall.attack.served_guard import ServedGuard
from firewall.attack.victim import BareVictim, GuardedVictim, Victim
from firewall.bundle.store import Bundle
from firewall.errors import ConfigError
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


@dataclass(frozen=True)
class OnnxTarget:
    """A bare classifier: one float input [N, C, H, W] in [0, 1], one output [N, K] of logits."""

    name: str
    graph: bytes
    shape: tuple[int, int, int]
    classes: int

    @classmethod
    def read(cls, path: Path, shape: tuple[int, int, int]) -> OnnxTarget:
        """Open a file, and ask it once.

        Raises:
            ConfigError: it cannot be read, or is no such classifier.

        """
        try:
            graph = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"target: {path} cannot be read: {error.strerror}") from error
        try:
            module = OnnxClassifier(graph)
            with torch.no_grad():
                logits = module(torch.zeros(1, *shape))
        except Exception as error:  # a foreign graph may fail in any way
            raise ConfigError(
                f"target: {path} is no classifier of images [rows, {', '.join(map(str, shape))}] "
                f"in ONNX ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
            ) from error
        if logits.ndim != 2 or logits.shape[1] < 2:
            raise ConfigError(
                f"target: {path} answers {list(logits.shape)}; expected logits [rows, classes]"
            )
        return cls(path.stem, graph, shape, logits.shape[1])

    @property
    def digest(self) -> str:
        """Of the file."""
        return hashlib.sha256(self.graph).hexdigest()

    @property
    def labels(self) -> tuple[str, ...]:
        """Numbers."""
        return tuple(str(number) for number in range(self.classes))

    def victim(self, rate: float) -> Victim:
        """The bare classifier; there is no rate to keep."""
        return BareVictim(self.module())

    def module(self) -> nn.Module:
        """The graph as a differentiable module."""
        return OnnxClassifier(self.graph)


class OnnxClassifier(nn.Module):
    """An ONNX graph of one input and one output: [N, C, H, W] to [N, K]."""

    def __init__(self, graph: bytes) -> None:
        super().__init__()
        self.inner = OnnxModule(graph)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, with gradients."""
        [name] = self.inner.inputs
        found: dict[str, Tensor] = self.inner(**{name: x})
        return next(iter(found.values()))
