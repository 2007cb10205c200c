"""A tiny classifier and a bundle around it: the same code paths as the real one, in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from firewall.bundle.manifest import ThreatModel
from firewall.bundle.signing import Signer
from firewall.bundle.spec import GuardSpec, InputSpec, Preprocessing, StageSpec
from firewall.bundle.store import Bundle, write_bundle
from firewall.guard.classifier import Classifier, ClassifierOutput
from firewall.guard.compile import export
from firewall.stages.registry import Registry
from firewall.testing import images
from firewall.train.build import ByRows, Data, Identity, build
from firewall.train.smoothing_table import SmoothingSpec

SIDE = 32
CLASSES = 10
INPUT = InputSpec(name="image", channels=3, height=SIDE, width=SIDE)
GUARD = GuardSpec(
    stages=(
        StageSpec(kind="denoiser", name="blur", plugin="gaussian-blur"),
        StageSpec(kind="denoiser", name="bit-depth", plugin="bit-depth"),
        StageSpec(kind="detector", name="feature-norm", plugin="feature-norm"),
        StageSpec(kind="detector", name="noise-floor", plugin="noise-floor"),
        StageSpec(kind="detector", name="view-consistency", plugin="view-consistency"),
        StageSpec(kind="ensemble", name="log-average", plugin="log-average"),
    )
)


class TinyClassifier(Classifier):
    """Two convolutions with fixed random weights."""

    taps: ClassVar[tuple[str, ...]] = ("penultimate",)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.second = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.last = nn.Linear(16 * 16, CLASSES)
        self.num_classes = CLASSES
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> ClassifierOutput:
        y = F.relu(self.first((x - 0.5) / 0.25))
        y = F.adaptive_avg_pool2d(F.relu(self.second(y)), 4).flatten(1)
        return ClassifierOutput(self.last(y) * 8, {"penultimate": y})


class TinyLogits(nn.Module):
    """The classifier alone, as a plain network."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = TinyClassifier()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).logits


def write_tiny_onnx(path: Path, side: int = SIDE) -> Path:
    """The classifier alone as an ONNX file, for images of a size that 16 divides."""
    example = F.interpolate(images(2), size=(side, side))
    path.write_bytes(export(TinyLogits().eval(), {"x": example}, ["logits"]))
    return path


def pixels(rows: int, seed: int) -> np.ndarray:
    """[rows, 32, 32, 3] uint8."""
    return (images(rows, seed).numpy().transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)


def wire(rows: int, seed: int) -> np.ndarray:
    """[rows, 3, 32, 32] float32, clean."""
    return images(rows, seed).numpy()


def forged(rows: int, seed: int = 0) -> np.ndarray:
    """[rows, 3, 32, 32] float32: checkerboards, unlike anything the guard was calibrated on."""
    board = np.indices((SIDE, SIDE)).sum(axis=0) % 2
    x = np.broadcast_to(board, (rows, 3, SIDE, SIDE)).astype(np.float32)
    return np.ascontiguousarray(x)


def another(bundle: Bundle, target: Path, signer: Signer, **changes: Any) -> Path:
    """The same bundle with another manifest, signed anew; returns its place."""
    write_bundle(target, bundle.manifest.model_copy(update=changes), bundle.files, signer)
    return target


def build_tiny(
    target: Path,
    signer: Signer,
    *,
    name: str = "tiny",
    guard: GuardSpec = GUARD,
    input_spec: InputSpec = INPUT,
    rows: int = 120,
    smoothing: SmoothingSpec | None = None,
) -> Path:
    """Write a bundle; returns its place."""
    build(
        target,
        identity=Identity(
            name=name,
            version="1",
            architecture="two convolutions",
            recipe="0" * 64,
            seed=0,
            labels=tuple(f"class {index}" for index in range(CLASSES)),
            threat_model=ThreatModel(norm="linf", radius=0.1, evaluated=()),
        ),
        classifier=TinyClassifier(),
        guard_spec=guard,
        input_spec=input_spec,
        preprocessing=Preprocessing(resize=36),
        data=Data(
            fit=pixels(40, 10),
            held_out=pixels(20, 13),
            held_out_groups=np.arange(20),
            names={"part-a": ("noise " + "0" * 64,)},
        ),
        calibrate=ByRows(pixels(rows, 11), pixels(rows, 12), escalation=0.2),
        signer=signer,
        registry=Registry.discover(),
        smoothing=smoothing,
    )
    return target
