"""A small network with certificates, trained in seconds on scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from firewall.bundle.manifest import ThreatModel
from firewall.bundle.signing import Signer
from firewall.bundle.spec import GuardSpec, InputSpec, Preprocessing, StageSpec
from firewall.stages.registry import Registry
from firewall.train.build import ByRows, Data, Identity, build
from firewall.train.fit_network import Images, Phase, Schedule, fit_network
from firewall.train.networks import Cnn, NetworkSpec, make_network
from firewall.train.objectives import IntervalBound, Standard
from firewall.train.smoothing_table import SmoothingSpec
from firewall.train.sources import SourceSpec, read

RADIUS = 0.1
SPEC = InputSpec(name="image", channels=1, height=8, width=8)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """[1797, 1, 8, 8] uint8 and labels."""
    found, _ = read(SourceSpec(source="digits", channels=1, height=8, width=8), Path())
    return found.x, found.y


def fit_bounded(folder: Path) -> Cnn:
    """Trained on the first 1,000 rows."""
    x, y = digits()
    network = make_network(
        NetworkSpec(width=8, hidden=64, initialisation="interval"), (1, 8, 8), 10, 0
    )
    parts = [Images(torch.from_numpy(x[rows]), torch.from_numpy(y[rows]))
             for rows in (slice(0, 1000), slice(1000, 1100))]  # fmt: skip
    schedule = Schedule(
        phases=(Phase(Standard(), 3), Phase(IntervalBound(RADIUS), 17, ramp=0.5)),
        radius=RADIUS, batch=25, rate=2e-3, decay=0.0, average=0.9,
    )  # fmt: skip
    fit_network(network, *parts, schedule, folder, seed=0)
    return network


def held_out() -> tuple[Tensor, Tensor]:
    """The other rows, in [0, 1]."""
    x, y = digits()
    return torch.from_numpy(x[1100:]).float() / 255, torch.from_numpy(y[1100:])


def build_bounded(
    target: Path,
    signer: Signer,
    network: Cnn,
    *,
    smoothing: SmoothingSpec | None = None,
    fitted_on: int = 40,
) -> Path:
    """A bundle of it; returns its place."""
    pixels = np.ascontiguousarray(digits()[0].transpose(0, 2, 3, 1))
    build(
        target,
        identity=Identity(
            name="bounded",
            version="1",
            architecture="cnn",
            recipe="0" * 64,
            seed=0,
            labels=tuple("0123456789"),
            threat_model=ThreatModel(norm="linf", radius=RADIUS, evaluated=()),
        ),
        classifier=network,
        guard_spec=GuardSpec(
            stages=(StageSpec(kind="detector", name="feature-norm", plugin="feature-norm"),)
        ),
        input_spec=SPEC,
        preprocessing=Preprocessing(resize=8),
        data=Data(
            fit=pixels[:fitted_on],
            held_out=pixels[1340:1360],
            held_out_groups=np.arange(20),
            names={},
        ),
        calibrate=ByRows(pixels[1100:1220], pixels[1220:1340], escalation=0.2),
        signer=signer,
        registry=Registry.discover(),
        smoothing=smoothing,
    )
    return target
