"""The frozen network by whose features generated images are judged.

Inception, which scores usually rest on, has never seen grey clothes of 28 x 28. So ours is a
classifier of the very data, or an ONNX graph that its user brings; its hash is beside each score.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from torch import Tensor, nn

from firewall.errors import ConfigError
from firewall.generate.coverage import Features
from firewall.guard.compile import export
from firewall.train.fit_network import Images, Phase, Schedule, fit_network
from firewall.train.networks import Cnn, NetworkSpec, make_network
from firewall.train.objectives import Standard

_BATCH = 250
_SPEC = NetworkSpec(architecture="cnn", width=16, hidden=64)


class Extractor:
    """An ONNX graph: images [N, C, H, W] in [0, 1] to `features` [N, F] and perhaps `logits`."""

    def __init__(self, graph: bytes) -> None:
        """Open a graph.

        Raises:
            ConfigError: it cannot be loaded, or has no such input and output.

        """
        try:
            self._session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises its own, undocumented classes
            raise ConfigError("extractor: onnxruntime cannot load this graph") from error
        inputs = self._session.get_inputs()
        outputs = [one.name for one in self._session.get_outputs()]
        if len(inputs) != 1 or "features" not in outputs:
            raise ConfigError(
                f"extractor: {len(inputs)} inputs and the outputs {', '.join(outputs)}; expected "
                "one input of images and an output named 'features'"
            )
        self._input = inputs[0].name
        self.has_logits = "logits" in outputs
        self.sha256 = hashlib.sha256(graph).hexdigest()

    def __call__(self, x: npt.NDArray[Any]) -> tuple[Features, Features | None]:
        """Features [N, F], and log-probabilities [N, K] where the graph has logits.

        Args:
            x: [N, C, H, W], in [0, 1] as float32 or as uint8.

        Raises:
            ConfigError: the graph takes other images.

        """
        wanted = ["features", "logits"] if self.has_logits else ["features"]
        try:
            parts = [
                self._session.run(wanted, {self._input: _scaled(x[n : n + _BATCH])})
                for n in range(0, len(x), _BATCH)
            ]
        except Exception as error:  # onnxruntime raises its own, undocumented classes
            raise ConfigError(
                f"extractor: cannot be run on images of {list(x.shape[1:])}"
            ) from error
        features = np.concatenate([part[0].reshape(len(part[0]), -1) for part in parts])
        if not self.has_logits:
            return features.astype(np.float64), None
        logits = np.concatenate([part[1] for part in parts]).astype(np.float64)
        top = logits.max(axis=1, keepdims=True)
        shifted = logits - top
        normal: Features = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return features.astype(np.float64), normal


def _scaled(x: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    if x.dtype == np.uint8:
        return x.astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(x, np.float32)


class _Outputs(nn.Module):
    def __init__(self, network: Cnn) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.network(x)
        return out.features["penultimate"].flatten(1), out.logits


def fit_extractor(
    train: Images,
    selection: Images,
    classes: int,
    folder: Path,
    *,
    epochs: int = 6,
    least_steps: int = 1500,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> bytes:
    """Train a plain classifier until it stands, and answer its graph.

    Args:
        train: real images.
        selection: by which epochs are compared.
        classes: how many.
        folder: for checkpoints.
        epochs: of training.
        least_steps: of the optimiser; few images are gone through more often in an epoch.
        seed: of every draw.
        progress: told each epoch.

    """
    shape = (train.x.shape[1], train.x.shape[2], train.x.shape[3])
    network = make_network(_SPEC, shape, classes, seed)
    # Kept by accuracy after a hair of an attack, which is accuracy.
    schedule = Schedule(phases=(Phase(Standard(0.05), epochs),), radius=1 / 255, shift=1)
    steps = epochs * math.ceil(len(train) / schedule.batch)
    schedule = replace(schedule, passes=max(1, math.ceil(least_steps / steps)))
    fit_network(network, train, selection, schedule, folder, seed=seed, progress=progress)
    x = torch.rand(2, *shape)
    return export(_Outputs(network).eval(), {"x": x}, ["features", "logits"])
