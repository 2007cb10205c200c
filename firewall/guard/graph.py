"""A guard as one differentiable module. What is served is the ONNX export of this, and what is
attacked is this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from firewall.errors import StageFault
from firewall.guard.classifier import Classifier
from firewall.stages import RAW, Denoiser, Detector, Ensemble, Evidence


class CheapOutput(NamedTuple):
    """What the cheap tier knows: logits [N, K], statistics by detector [N], features by tap."""

    logits: Tensor
    statistics: dict[str, Tensor]
    features: dict[str, Tensor]


class ExpensiveOutput(NamedTuple):
    """What the expensive tier adds: log-probabilities [N, K], statistics by detector [N]."""

    log_probabilities: Tensor
    statistics: dict[str, Tensor]


class Guard(nn.Module):
    """Classifier and stages, assembled. Immutable: make one with `assemble`.

    Without a classifier (a remote one) `views` and `judge` are what is computed around its calls.
    """

    def __init__(
        self,
        *,
        classifier: Classifier | None,
        denoisers: Mapping[str, Denoiser],
        detectors: Mapping[str, Detector],
        ensemble: Ensemble | None,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.denoisers = nn.ModuleDict(denoisers)
        self.detectors = nn.ModuleDict(detectors)
        self.ensemble = ensemble

    def tier(self, name: str) -> list[str]:
        """Names of the detectors of a tier, in order."""
        return [key for key, detector in self._detectors() if detector.tier == name]

    @property
    def carried_features(self) -> list[str]:
        """Taps that the expensive tier reads and the cheap tier therefore hands over."""
        return self.features_of("expensive")

    def features_of(self, tier: str) -> list[str]:
        """Taps that the detectors of a tier read."""
        taps: set[str] = set()
        for _, detector in self._detectors():
            if detector.tier == tier:
                taps |= detector.needs.features
        return sorted(taps)

    def views(self, x: Tensor) -> dict[str, Tensor]:
        """[N, C, H, W] in [0, 1] to one such batch for each denoiser."""
        views = {name: denoiser(x) for name, denoiser in self.denoisers.items()}
        for name, view in views.items():
            _check(f"denoiser {name!r}", view, x.shape)
        return views

    def cheap(self, x: Tensor) -> CheapOutput:
        """The classifier's own pass and what can be told from it and from the image."""
        if self.classifier is None:
            raise TypeError("a guard around a remote classifier has no classifier to run")
        logits, features = self.classifier(x)
        evidence = Evidence(raw=x, logits={RAW: logits}, features=features)
        statistics = self.cheap_statistics(evidence)
        return CheapOutput(
            logits, statistics, {tap: features[tap] for tap in self.carried_features}
        )

    def expensive(
        self, x: Tensor, logits: Tensor, features: Mapping[str, Tensor]
    ) -> ExpensiveOutput:
        """All views through the classifier in one batch, and what can be told from them."""
        if self.classifier is None:
            raise TypeError("a guard around a remote classifier has no classifier to run")
        views = self.views(x)
        by_view = {RAW: logits}
        if views:
            stacked = self.classifier(torch.cat(list(views.values())))[0]
            # Not chunk(): its arithmetic on the row count makes the exporter fix the batch.
            parts = stacked.reshape(len(views), x.shape[0], -1)
            by_view |= {name: parts[index] for index, name in enumerate(views)}
        evidence = Evidence(raw=x, views=views, logits=by_view, features=features)
        return self.judge(evidence, self.tier("expensive"))

    def cheap_statistics(self, evidence: Evidence) -> dict[str, Tensor]:
        """Statistics [N] of the cheap detectors, of the raw image, its logits and features."""
        return self._statistics(evidence, self.tier("cheap"))

    def judge(self, evidence: Evidence, detectors: list[str]) -> ExpensiveOutput:
        """Statistics of the named detectors, and the ensemble's (or the raw) log-probabilities."""
        if self.ensemble is None:
            log_probabilities = torch.log_softmax(evidence.logits[RAW], dim=1)
        else:
            log_probabilities = self.ensemble(evidence)
            _check("the ensemble", log_probabilities, evidence.logits[RAW].shape)
        log_probabilities = log_probabilities + _taint(evidence)[:, None]
        return ExpensiveOutput(log_probabilities, self._statistics(evidence, detectors))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both tiers, for every row.

        Serving runs the second for doubtful rows alone and answers the others with the logits of
        the first: what a client is told is `live.LiveGuard`'s to say.

        Returns:
            [N, K] log-probabilities, and [N, D] statistics: cheap detectors first, each tier in
            the order of the specification.

        """
        cheap = self.cheap(x)
        expensive = self.expensive(x, cheap.logits, cheap.features)
        columns = [*cheap.statistics.values(), *expensive.statistics.values()]
        return expensive.log_probabilities, torch.stack(columns, dim=1)

    def _detectors(self) -> list[tuple[str, Detector]]:
        return [(name, cast(Detector, module)) for name, module in self.detectors.items()]

    def _statistics(self, evidence: Evidence, names: list[str]) -> dict[str, Tensor]:
        statistics = {name: self.detectors[name](evidence) for name in names}
        for name, statistic in statistics.items():
            _check(f"detector {name!r}", statistic, evidence.raw.shape[:1])
        return statistics


def _taint(evidence: Evidence) -> Tensor:
    """[N]: 0 for a row whose views and logits are all finite, NaN for any other.

    Added to what the runtime checks. onnxruntime's minima and maxima drop NaN, so that a view that
    fails could otherwise leave every statistic finite, and the row would pass unseen.
    """
    sums = [logits.sum(dim=1) for logits in evidence.logits.values()]
    sums += [view.mean(dim=(1, 2, 3)) for view in evidence.views.values()]
    return torch.stack([0.0 * total for total in sums]).sum(dim=0)


def _check(stage: str, result: Tensor, shape: torch.Size) -> None:
    """A plugin's word is not trusted: its result has this shape and is float32.

    Raises:
        StageFault: naming the stage.

    """
    # While a graph is traced the number of rows is a symbol, and comparing would fix it.
    rows = 1 if torch.compiler.is_exporting() else 0
    if (
        not isinstance(result, Tensor)
        or result.dtype != torch.float32
        or result.ndim != len(shape)
        or result.shape[rows:] != shape[rows:]
    ):
        found = (
            f"{result.dtype} {list(result.shape)}"
            if isinstance(result, Tensor)
            else type(result).__name__
        )
        raise StageFault(f"{stage} returned {found}; expected torch.float32 {list(shape)}")
