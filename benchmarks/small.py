"""The small classifier that servers are compared with: 28 by 28, a request of 3 KB."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from firewall.bundle.manifest import ThreatModel
from firewall.bundle.signing import Signer
from firewall.bundle.spec import GuardSpec, InputSpec, Preprocessing, StageSpec
from firewall.guard.compile import export
from firewall.stages.registry import Registry
from firewall.train.build import ByRows, Data, Identity, build
from firewall.train.data import load_idx
from firewall.train.fit_network import Images, Phase, Schedule, fit_network
from firewall.train.networks import NetworkSpec, make_network
from firewall.train.objectives import Standard

DATA = Path("/usr/share/datasets/fashion-mnist")
SHAPE, CLASSES = (1, 28, 28), 10
GUARD = GuardSpec(
    stages=(
        StageSpec(kind="denoiser", name="blur", plugin="gaussian-blur"),
        StageSpec(kind="denoiser", name="bit-depth", plugin="bit-depth"),
        StageSpec(kind="detector", name="feature-norm", plugin="feature-norm"),
        StageSpec(kind="detector", name="mahalanobis", plugin="mahalanobis"),
        StageSpec(kind="detector", name="view-consistency", plugin="view-consistency"),
        StageSpec(kind="ensemble", name="log-average", plugin="log-average"),
    )
)


class _Logits(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.network(image).logits
        return logits


@dataclass(frozen=True)
class Small:
    """A trained classifier and images that it has not seen.

    Attributes:
        network: with taps.
        onnx: the same as a graph, `image` [N, 1, 28, 28] float32 in [0, 1] to `logits` [N, 10].
        train: uint8 images and labels.
        clean: [10000, 1, 28, 28] float32 in [0, 1].

    """

    network: Any
    onnx: bytes
    train: Images
    clean: npt.NDArray[np.float32]


def small_classifier(folder: Path, data: Path = DATA) -> Small:
    """Train for one epoch: what it answers is of no account here, what it costs is."""
    x, y = load_idx(data / "train-images-idx3-ubyte.gz", data / "train-labels-idx1-ubyte.gz")
    clean, _ = load_idx(data / "t10k-images-idx3-ubyte.gz", data / "t10k-labels-idx1-ubyte.gz")
    pixels = torch.from_numpy((x * 255).round().astype(np.uint8))
    held = Images(pixels[:1000], torch.from_numpy(y[:1000]))
    train = Images(pixels[1000:], torch.from_numpy(y[1000:]))
    spec = NetworkSpec(architecture="shallow", width=16, hidden=64)
    network = make_network(spec, SHAPE, CLASSES, 0)
    schedule = Schedule((Phase(Standard(), 1),), 1 / 255)
    fit_network(
        network, train, held, schedule, folder / "state", seed=0, progress=lambda line: None
    )
    network.eval().requires_grad_(False)
    graph = export(_Logits(network).eval(), {"image": torch.zeros(2, *SHAPE)}, ["logits"])
    return Small(network, graph, train, clean)


def small_bundle(small: Small, folder: Path, signer: Signer, guard: GuardSpec = GUARD) -> Path:
    """A guard around it, of both tiers when not told otherwise; returns its place."""
    pixels = small.train.x.numpy().transpose(0, 2, 3, 1)
    at = 0

    def take(rows: int) -> npt.NDArray[np.uint8]:
        nonlocal at
        at += rows
        return np.ascontiguousarray(pixels[at - rows : at])

    build(
        folder,
        identity=Identity(
            name="small",
            version="1",
            architecture="two convolutions",
            recipe="0" * 64,
            seed=0,
            labels=tuple(f"class {index}" for index in range(CLASSES)),
            threat_model=ThreatModel(norm="linf", radius=0.1, evaluated=()),
        ),
        classifier=small.network,
        guard_spec=guard,
        input_spec=InputSpec(name="image", channels=1, height=28, width=28),
        preprocessing=Preprocessing(resize=28),
        data=Data(
            fit=take(2000),
            held_out=take(1000),
            held_out_groups=np.arange(1000),
            names={"part-a": ("fashion-mnist " + "0" * 64,)},
        ),
        calibrate=ByRows(take(1500), take(1500), escalation=0.15),
        signer=signer,
        registry=Registry.discover(),
    )
    return folder
