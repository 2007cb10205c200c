"""Evaluations from Python: of a torch network, an ONNX file, or a bundle."""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from firewall.attack.python_api import TorchClassifier
from firewall.attack.victim import BareVictim, Victim
from firewall.bundle.store import Bundle
from firewall.errors import ConfigError
from firewall.evaluation.onnx_target import OnnxTarget
from firewall.evaluation.request import Request
from firewall.evaluation.run import evaluate as run
from firewall.evaluation.target import BundleTarget, Target


@dataclass(frozen=True)
class _TorchTarget:
    """A torch network as something to evaluate."""

    classifier: TorchClassifier
    shape: tuple[int, int, int]
    classes: int
    digest: str
    name: str = "network"
    note: str | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, which are their numbers."""
        return tuple(str(number) for number in range(self.classes))

    def victim(self, rate: float) -> Victim:
        """The network; there is no rate to keep."""
        return BareVictim(self.classifier)


def evaluate(
    target: TorchClassifier | Bundle | Path,
    x: npt.NDArray[Any] | torch.Tensor,
    y: npt.NDArray[Any] | torch.Tensor,
    *,
    eps: float,
    norm: str = "linf",
    suite: str = "static",
    steps: int = 50,
    queries: int = 500,
    seed: int = 0,
    out: Path | None = None,
) -> dict[str, Any]:
    """Attack with a whole suite, as `firewall evaluate` does.

    Args:
        target: a network with its bounds, an opened bundle, or an ONNX file.
        x: [N, C, H, W] within the network's bounds; in [0, 1] for files and bundles.
        y: [N] classes.
        eps: radius, in units of the bounds.
        norm: `linf` or `l2`.
        suite: `quick`, `static`, `black-box`, `adaptive` or `full`.
        steps: of iterated attacks.
        queries: of black-box attacks, for each row.
        seed: of the attacks.
        out: folder for shards, where an evaluation that was cut off is gone on with; a temporary
            one when None.

    Returns:
        The figures, as in `evaluation.json`. Read `warnings` first.

    Raises:
        ConfigError: target, data or settings do not fit.

    """
    images, labels = torch.as_tensor(x), np.asarray(y).astype(np.int64)
    if images.ndim != 4:
        raise ConfigError(f"x: shape {list(images.shape)}; expected [rows, C, H, W]")
    shape = (images.shape[1], images.shape[2], images.shape[3])
    radius = eps
    aim: Target
    if isinstance(target, TorchClassifier):
        radius = eps / (target.bounds[1] - target.bounds[0])
        images = target.scaled(images)
        with torch.no_grad():
            classes = target(images[:1]).shape[1]
        aim = _TorchTarget(target, shape, classes, _digest(target))
    elif isinstance(target, Bundle):
        aim = BundleTarget(target)
    else:
        aim = OnnxTarget.read(target, shape)
    promised = target.manifest.promised_rate if isinstance(target, Bundle) else None
    request = Request(suite, norm, radius, seed, promised or 0.01, steps, queries)
    frozen = target.frozen() if isinstance(target, TorchClassifier) else nullcontext()
    with frozen, tempfile.TemporaryDirectory() as scratch:
        return run(aim, images.float().numpy(), labels, request, out or Path(scratch)).result


def _digest(classifier: TorchClassifier) -> str:
    total = hashlib.sha256(repr((classifier.bounds, classifier.mean, classifier.std)).encode())
    for name, value in classifier.network.state_dict().items():
        total.update(name.encode() + value.detach().cpu().numpy().tobytes())
    return total.hexdigest()
