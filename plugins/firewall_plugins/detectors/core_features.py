"""The detector that sees a classifier's inner features, taught by forgeries of that classifier."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from firewall.stages import (
    API_VERSION,
    RAW,
    Detector,
    Evidence,
    FitReport,
    Lesson,
    Needs,
    StageConfig,
    Tier,
)
from firewall_plugins.weights import shipped

#: Of the architecture below; weights of another version are refused.
VERSION = "core-features 1"
#: Standard deviations at which a feature is cut.
_CUT = 6.0


class CoreFeatures(Detector):
    """Logit of "forged" from a classifier's features at several depths and from its logits.

    After Metzen et al. 2017 (arXiv:1702.04267) and SafetyNet (Lu et al. 2017, arXiv:1704.00103):
    each channel's mean and spread at every tap, the lead of the top class, the energy of the
    logits (Liu et al. 2020, arXiv:2010.03759) and their entropy, into a network of one hidden
    layer. `firewall guard` teaches it; of EfficientNet-Lite0 it ships ready.
    """

    api_version: ClassVar[int] = API_VERSION
    tier: ClassVar[Tier] = "cheap"

    class Config(StageConfig):
        """Settings."""

        #: Taps of the classifier to read.
        taps: tuple[str, ...] = Field(default=("penultimate",), min_length=1, max_length=16)
        #: Units of the hidden layer.
        hidden: int = Field(default=48, ge=2, le=1024)
        #: Passes over the examples.
        epochs: int = Field(default=60, ge=1, le=1000)
        #: Share of features left out at each step, against overfitting.
        dropout: float = Field(default=0.5, ge=0, lt=1)
        #: `learnt` from a lesson, or shipped for a classifier.
        weights: Literal["learnt", "efficientnet-lite0"] = "learnt"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.mean: Tensor
        self.scale: Tensor
        self.first: Tensor
        self.first_bias: Tensor
        self.last: Tensor
        self.last_bias: Tensor
        # Untaught: all rows get the same score.
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("scale", torch.zeros(1))
        self.register_buffer("first", torch.zeros(1, 1))
        self.register_buffer("first_bias", torch.zeros(1))
        self.register_buffer("last", torch.zeros(1))
        self.register_buffer("last_bias", torch.zeros(()))
        if config.weights != "learnt":
            names = ("mean", "scale", "first", "first_bias", "last", "last_bias")
            for name, tensor in shipped(f"core-features-{config.weights}", VERSION, names).items():
                setattr(self, name, tensor)

    @property
    def needs(self) -> Needs:
        """The logits and the taps of the settings."""
        return Needs(logits=True, features=frozenset(self.config.taps))

    def forward(self, evidence: Evidence) -> Tensor:
        """Evidence to [N]: a logit."""
        seen = ((self.features_of(evidence) - self.mean) * self.scale).clamp(-_CUT, _CUT)
        return F.relu(seen @ self.first.T + self.first_bias) @ self.last + self.last_bias

    def learn(self, lesson: Lesson, rng: Generator) -> FitReport:
        """Learn from benign images and forgeries as they arrive; nothing if it ships ready."""
        if self.config.weights != "learnt":
            return FitReport(rows=0, figures={})
        examples = lesson.examples()
        parts: list[Tensor] = []
        with torch.no_grad():
            for images in (examples.benign, examples.forged):
                parts += [self.features_of(lesson.look(part)) for part in torch.split(images, 32)]
        target = torch.zeros(len(examples.benign) + len(examples.forged))
        target[len(examples.benign) :] = 1.0
        return self.learn_features(torch.cat(parts), target, rng)

    def learn_features(self, seen: Tensor, target: Tensor, rng: Generator) -> FitReport:
        """Learn from what `features_of` gives.

        Args:
            seen: [M, F].
            target: [M], 1 for forgeries and 0 for others.
            rng: of every draw.

        """
        benign = seen[target == 0]
        mean = benign.mean(dim=0)
        scale = 1.0 / benign.std(dim=0).clamp_min(1e-4)
        x = ((seen - mean) * scale).clamp(-_CUT, _CUT)
        hidden = self.config.hidden
        first = nn.Parameter(torch.randn(hidden, x.shape[1], generator=rng) / x.shape[1] ** 0.5)
        first_bias = nn.Parameter(torch.zeros(hidden))
        last = nn.Parameter(torch.randn(hidden, generator=rng) / hidden**0.5)
        last_bias = nn.Parameter(torch.zeros(()))
        adam = torch.optim.AdamW(
            [
                {"params": [first, last], "weight_decay": 0.05},
                {"params": [first_bias, last_bias], "weight_decay": 0.0},
            ],
            1e-3,
        )
        epochs, batch = self.config.epochs, 128
        steps = epochs * -(-len(x) // batch)
        slower = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        # Both kinds weigh the same, however many there are of each.
        share = float(target.mean().clamp(0.01, 0.99))
        right = 0
        keep = 1.0 - self.config.dropout
        for _ in range(epochs):
            right = 0
            for rows in torch.split(torch.randperm(len(x), generator=rng), batch):
                mask = (torch.rand(len(rows), x.shape[1], generator=rng) < keep) / keep
                score = F.relu((x[rows] * mask) @ first.T + first_bias) @ last + last_bias
                weight = torch.where(target[rows] > 0, 0.5 / share, 0.5 / (1.0 - share))
                loss = F.binary_cross_entropy_with_logits(score, target[rows], weight)
                adam.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                adam.step()
                slower.step()
                right += int(((score > 0) == (target[rows] > 0)).sum())
        self.mean, self.scale = mean, scale
        self.first, self.first_bias = first.detach(), first_bias.detach()
        self.last, self.last_bias = last.detach(), last_bias.detach()
        return FitReport(rows=len(x), figures={"training_accuracy": right / len(x)})

    def features_of(self, evidence: Evidence) -> Tensor:
        """Collect what it reads of N rows, [N, F]."""
        logits = evidence.logits[RAW]
        log_p = F.log_softmax(logits, dim=1)
        top = logits.topk(2, dim=1).values
        of_logits = [
            top[:, 0] - top[:, 1],
            logits.logsumexp(dim=1),
            -(log_p.exp() * log_p).sum(dim=1),
        ]
        taps = [evidence.features[tap].flatten(1) for tap in self.config.taps]
        return torch.cat([*taps, torch.stack(of_logits, dim=1)], dim=1)
