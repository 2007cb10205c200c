"""The guard of a bundle as its attacker has it: differentiable, and the very one that is served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from firewall.bundle.spec import InputSpec
from firewall.bundle.store import Bundle
from firewall.errors import ConfigError
from firewall.guard.classifier import Classifier
from firewall.guard.wire_input import WireInput
from firewall.lift.classifier import LiftedClassifier
from firewall.lift.module import OnnxModule
from firewall.screening.calibration import Calibration, Cascade
from firewall.screening.local_model import MODEL
from firewall.screening.scores import Scores
from firewall.screening.split import GRAPHS


@dataclass(frozen=True)
class Seen:
    """What an attacker who runs the guard sees of N rows.

    Attributes:
        logits: [N, K] of the bare classifier.
        log_probabilities: [N, K] of the expensive tier's ensemble.
        statistics: [N, D], the cheap detectors first.

    """

    logits: Tensor
    log_probabilities: Tensor
    statistics: Tensor


class Tiers(Protocol):
    """The two tiers of a guard, differentiable, on image batches [N, C, H, W] in [0, 1]."""

    has_expensive: bool

    def cheap(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Logits [N, K], cheap statistics [N, Dc], and what the second tier takes over."""

    def expensive(
        self, x: Tensor, logits: Tensor, carried: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities [N, K] and expensive statistics [N, De]."""


class FusedTiers(nn.Module):
    """Graphs that have their classifier inside: `CompiledGuard` as its attacker has it."""

    def __init__(self, graphs: Mapping[str, bytes], spec: InputSpec) -> None:
        super().__init__()
        self.first = OnnxModule(graphs["cheap.onnx"])
        self.second = OnnxModule(graphs["expensive.onnx"]) if "expensive.onnx" in graphs else None
        self.has_expensive = self.second is not None
        self.wire = WireInput(spec)

    def cheap(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Run the first graph."""
        # The round trip keeps gradients for floating inputs; eight-bit ones are rounded when sent.
        found = self.first(wire=self.wire.back_float(x))
        logits = found.pop("logits")
        statistics = found.pop("statistics", None)
        if statistics is None:
            statistics = logits.new_zeros((len(x), 0))
        return logits, statistics, found

    def expensive(
        self, x: Tensor, logits: Tensor, carried: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Run the second graph."""
        assert self.second is not None
        found = self.second(wire=self.wire.back_float(x), logits=logits, **carried)
        statistics = found.get("statistics")
        if statistics is None:
            statistics = logits.new_zeros((len(x), 0))
        return found["log_probabilities"], statistics


class SplitTiers(nn.Module):
    """Graphs around a classifier of its own: `SplitGuard` as its attacker has it."""

    def __init__(
        self, graphs: Mapping[str, bytes], spec: InputSpec, classifier: Classifier
    ) -> None:
        """Lift the graphs.

        Args:
            graphs: by name, those of `firewall.screening.split.GRAPHS` that there are.
            spec: what clients send.
            classifier: the guard's own, or a stand-in of the same classes where the attacker does
                not have that one.

        """
        super().__init__()
        self.graphs = nn.ModuleDict(
            {
                name.removesuffix(".onnx"): OnnxModule(graphs[name])
                for name in GRAPHS
                if name in graphs
            }
        )
        self.has_expensive = "expensive" in self.graphs
        self.classifier = classifier
        self.wire = WireInput(spec)

    def cheap(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Ask the classifier, and run the graph after it."""
        logits, features = self.classifier(x)
        carried = {f"feature.{tap}": values for tap, values in features.items()}
        statistics = logits.new_zeros((len(x), 0))
        if "cheap" in self.graphs:
            feed = {"wire": self.wire.back_float(x), "logits": logits, **carried}
            statistics = self._run("cheap", feed)["statistics"]
        return logits, statistics, carried

    def expensive(
        self, x: Tensor, logits: Tensor, carried: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Ask the classifier about the views, and run the graph after it."""
        wire = self.wire.back_float(x)
        feed = {"wire": wire, "logits": logits[None], **carried}
        if "views" in self.graphs:
            views = self._run("views", {"wire": wire})["views"]
            said = self.classifier(views.flatten(0, 1)).logits
            stacked = said.reshape(len(views), len(x), -1)
            feed |= {"views": views, "logits": torch.cat([logits[None], stacked])}
        found = self._run("expensive", feed)
        statistics = found.get("statistics")
        if statistics is None:
            statistics = logits.new_zeros((len(x), 0))
        return found["log_probabilities"], statistics

    def _run(self, name: str, feed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        graph = cast(OnnxModule, self.graphs[name])
        found: dict[str, Tensor] = graph(**{one: feed[one] for one in graph.inputs})
        return found


class ServedGuard(nn.Module):
    """Both tiers of a bundle, on image batches in [0, 1]."""

    def __init__(self, tiers: Tiers, calibration: Calibration) -> None:
        super().__init__()
        self.tiers = tiers
        self.calibration = calibration

    @classmethod
    def of(
        cls, bundle: Bundle, calibration: Calibration, stand_in: Classifier | None = None
    ) -> ServedGuard:
        """Lift a checked bundle.

        Args:
            bundle: with all of its graphs.
            calibration: of the bundle.
            stand_in: for a classifier that is served elsewhere, a network of the same classes.

        Raises:
            Unsupported: a graph has an operator that cannot be lifted.
            ConfigError: the classifier is served elsewhere, and there is no stand-in.

        """
        manifest = bundle.manifest
        spec = manifest.input
        if manifest.classifier.kind == "embedded":
            return cls(FusedTiers(bundle.files, spec), calibration)
        if manifest.classifier.kind == "file":
            classifier: Classifier | None = LiftedClassifier(
                bundle.files[MODEL],
                manifest.output,
                Scores.of(manifest),
                spec,
                manifest.classifier.taps,
            )
        else:
            classifier = stand_in
        if classifier is None:
            raise ConfigError(
                f"bundle {manifest.name!r}: its classifier is served elsewhere and gives no "
                "gradient; name a stand-in of the same classes with --surrogate"
            )
        return cls(SplitTiers(bundle.files, spec, classifier), calibration)

    @property
    def has_expensive(self) -> bool:
        """Whether there is a second tier."""
        return self.tiers.has_expensive

    def classify(self, x: Tensor) -> Tensor:
        """The bare classifier: [N, C, H, W] in [0, 1] to logits [N, K]."""
        return self.cheap(x)[0]

    def forward(self, x: Tensor) -> Seen:
        """Everything, for every row: [N, C, H, W] in [0, 1]."""
        logits, statistics, carried = self.cheap(x)
        if not self.has_expensive:
            return Seen(logits, torch.log_softmax(logits, dim=1), statistics)
        log_probabilities, more = self.tiers.expensive(x, logits, carried)
        return Seen(logits, log_probabilities, torch.cat([statistics, more], dim=1))

    def answered(self, x: Tensor, cascade: Cascade) -> Tensor:
        """What a client would be told, were every row accepted: [N, K] log-probabilities.

        The ensemble's for rows that the cheap tier hands on, the bare classifier's for the others.
        """
        seen = self(x)
        doubt = cascade.doubt(seen.statistics[:, : self.calibration.cheap].detach().numpy())
        escalated = torch.from_numpy(cascade.escalates(doubt))
        raw = torch.log_softmax(seen.logits, dim=1)
        return torch.where(escalated[:, None], seen.log_probabilities, raw)

    def cheap(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The first tier: logits [N, K], cheap statistics [N, Dc], features handed on by name."""
        return self.tiers.cheap(x)
