"""A bare classifier in an ONNX file, as something to evaluate.

It is described as for `firewall guard` (`firewall.sources`); what is not said is taken for images
with values in [0, 1]. A classifier that answers probabilities is attacked through its logits, since
the gradient of a softmax vanishes where it is sure.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from firewall.attack.victim import BareVictim, Victim
from firewall.bundle.spec import InputSpec
from firewall.errors import ConfigError, FirewallError
from firewall.guard.classifier import LogitsOnly
from firewall.guard.wire_input import WireInput
from firewall.lift.classifier import LiftedClassifier
from firewall.screening.classifier import Array, SeparateClassifier
from firewall.screening.scores import Scores
from firewall.sources.check import read_scores
from firewall.sources.describe import label_count, normalisation_of, read_labels, spec_of
from firewall.sources.lifting import check_lift
from firewall.sources.options import PRESETS, Hints, SourceOptions
from firewall.sources.source import open_source

#: Rows of images on which answers are looked at.
_SAMPLE = 16


@dataclass(frozen=True)
class OnnxTarget:
    """A bare classifier.

    Attributes:
        name: of the file, without its ending.
        graph: the model, weights included.
        output: name of the class scores.
        spec: of its input.
        scores: how it answers.
        labels: names of the classes.

    """

    name: str
    graph: bytes
    output: str
    spec: InputSpec
    scores: Scores
    labels: tuple[str, ...]

    @classmethod
    def read(
        cls,
        path: Path,
        shape: tuple[int, int, int] | None = None,
        options: SourceOptions | None = None,
        sample: Tensor | None = None,
    ) -> OnnxTarget:
        """Open a file, and ask it once.

        Args:
            path: of the file.
            shape: of the images that it will be asked, (C, H, W); None takes the file's own.
            options: what its owner says of it.
            sample: [N, C, H, W] images in [0, 1] on which answers are looked at as well.

        Raises:
            ConfigError: it cannot be read, or is no such classifier.

        """
        told = options or SourceOptions()
        if told.shape is None and shape is not None:
            told = replace(told, shape=shape)
        source = open_source(str(path), told, None)
        normalisation = normalisation_of(source.input, told, Hints()) or PRESETS["zero-one"]
        spec = spec_of(source.input, source.size, normalisation)
        if shape is not None and (spec.channels, spec.height, spec.width) != shape:
            raise ConfigError(
                f"target: {path} takes images {[spec.channels, spec.height, spec.width]}; the "
                f"data holds {list(shape)}"
            )
        x = _rows(spec, sample)
        wire = np.ascontiguousarray(WireInput(spec).back(x).numpy())
        classifier = source.open()
        answers = classifier.infer(wire, None).scores
        scores = read_scores(answers, source.output.name, told, label_count(told))
        target = cls(
            Path(path).stem, source.graph((source.output.name,)), source.output.name, spec, scores,
            read_labels(told, Hints(), scores.classes),
        )  # fmt: skip
        _check(target, classifier, wire)
        return target

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image, (C, H, W)."""
        return (self.spec.channels, self.spec.height, self.spec.width)

    @property
    def classes(self) -> int:
        """Number of classes; two where the file answers one value."""
        return self.scores.classes

    @property
    def digest(self) -> str:
        """Of the model, weights included, and of how it is fed."""
        text = self.spec.model_dump_json().encode()
        return hashlib.sha256(self.graph + text).hexdigest()

    @property
    def note(self) -> str | None:
        """What is said before the evaluation; None where there is nothing to say."""
        if self.scores.spec.activation == "logits":
            return None
        if self.classifier().before_activation:
            return f"{self.name} ends in a {self.scores.spec.activation}; its logits are attacked"
        return f"{self.name} answers probabilities; their logarithm is attacked"

    def victim(self, rate: float) -> Victim:
        """Return the bare classifier; there is no rate to keep."""
        return BareVictim(self.module())

    def module(self) -> nn.Module:
        """Return the classifier as a differentiable module: [N, C, H, W] in [0, 1] to logits."""
        return LogitsOnly(self.classifier())

    def classifier(self) -> LiftedClassifier:
        """Lift the graph."""
        return LiftedClassifier(self.graph, self.output, self.scores, self.spec)


def _rows(spec: InputSpec, sample: Tensor | None) -> Tensor:
    """Images on which answers are looked at: black, white, noise, and what is given."""
    shape = (spec.channels, spec.height, spec.width)
    noise = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    rows = [torch.zeros(1, *shape), torch.ones(1, *shape), noise]
    if sample is not None and sample.shape[1:] == shape:
        rows.append(sample[:_SAMPLE])
    return torch.cat(rows)


def _check(target: OnnxTarget, model: SeparateClassifier, wire: Array) -> None:
    try:
        check_lift(target.classifier(), model, target.spec, target.scores, wire)
    except FirewallError as error:
        raise ConfigError(f"target: {target.name}: {error}") from error
