"""A small network that looks at what is left of an image when its content is taken away."""

from __future__ import annotations

import itertools
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
    RowLoss,
    StageConfig,
    Tier,
)

#: Second differences along rows, columns and both: what steganalysis looks at (Fridrich and
#: Kodovsky 2012), and where forgeries show.
_FILTERS = (
    ((0.0, 0.0, 0.0), (1.0, -2.0, 1.0), (0.0, 0.0, 0.0)),
    ((0.0, 1.0, 0.0), (0.0, -2.0, 0.0), (0.0, 1.0, 0.0)),
    ((-1.0, 2.0, -1.0), (2.0, -4.0, 2.0), (-1.0, 2.0, -1.0)),
)

#: L2 forgeries go up to this, in radii.
_FARTHEST = 4.0
_SQUARES = 12


def _patched(x: Tensor, radius: float, rng: Generator) -> Tensor:
    """Vertical stripes and squares of either sign, as random search tries them (Andriushchenko et
    al. 2020, arXiv:1912.00049).
    """
    rows, channels, height, width = x.shape
    signs = torch.randint(0, 2, (rows, channels, 1, width), generator=rng).float().mul(2).sub(1)
    signs = signs.expand(rows, channels, height, width).clone()
    for _ in range(_SQUARES):
        side = int(torch.randint(1, max(2, min(height, width) // 2), (), generator=rng))
        top = int(torch.randint(0, height - side + 1, (), generator=rng))
        left = int(torch.randint(0, width - side + 1, (), generator=rng))
        # Each row takes its own half of the squares, each channel its own sign.
        taken = torch.randint(0, 2, (rows, 1, 1, 1), generator=rng).float()
        sign = torch.randint(0, 2, (rows, channels, 1, 1), generator=rng).float().mul(2).sub(1)
        part = signs[:, :, top : top + side, left : left + side]
        signs[:, :, top : top + side, left : left + side] = taken * sign + (1 - taken) * part
    return (x + radius * signs).clamp(0.0, 1.0)


class ResidualCnn(Detector):
    """Logit of "forged" from high-pass residuals, by a small CNN (after Metzen et al. 2017,
    arXiv:1702.04267).

    Trained on clean images, clean images with random signs of the same size (which are no attack),
    and forgeries: what it has not seen it may not know. With `adversarial`, those by gradients also
    evade the detector as it is at that moment. That makes evasion dearer, not impossible: the
    figures of the adaptive attack say by how much.
    """

    api_version: ClassVar[int] = API_VERSION
    tier: ClassVar[Tier] = "cheap"

    class Config(StageConfig):
        """Settings."""

        #: Channels of the two layers.
        width: int = Field(default=16, ge=4, le=256)
        #: Passes over the lesson's images.
        epochs: int = Field(default=8, ge=1, le=1000)
        #: Images of a step.
        batch: int = Field(default=64, ge=1, le=4096)
        #: Of which it learns, in turn: gradients within the L-infinity ball; gradients of L2, from
        #: small ones to those that repaint the image; stripes and squares, as by random search.
        forgeries: tuple[Literal["linf", "l2", "patches"], ...] = ("linf",)
        #: Whether it sees the image as well as its residuals.
        content: bool = False
        #: Whether forgeries evade the detector while it learns.
        adversarial: bool = False
        #: Weight of evasion beside fooling, in those forgeries.
        evasion: float = Field(default=1.0, ge=0, le=100)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.filters: Tensor
        self.register_buffer("filters", torch.tensor(_FILTERS)[:, None] / 4.0)
        width = config.width
        # Own weights from a seed: a stage is made the same way every time.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = nn.Conv2d(2 * len(_FILTERS) + config.content, width, 3, padding=1)
            self.second = nn.Conv2d(width, width, 3, stride=2, padding=1)
            self.last = nn.Linear(2 * width, 1)

    @property
    def needs(self) -> Needs:
        """The image alone."""
        return Needs()

    def forward(self, evidence: Evidence) -> Tensor:
        """Evidence to [N]: a logit."""
        return self._score(evidence.raw)

    def learn(self, lesson: Lesson, rng: Generator) -> FitReport:
        """Train on clean images, on noisy ones, and on forgeries."""
        self.train().requires_grad_(True)
        adam = torch.optim.Adam(self.parameters(), 2e-3)
        right = seen = 0
        kinds = itertools.cycle(self.config.forgeries)
        for epoch in range(self.config.epochs):
            order = torch.randperm(len(lesson.x), generator=rng)
            right = seen = 0
            for rows in torch.split(order, self.config.batch):
                x, label = lesson.x[rows], lesson.label[rows]
                share = 0.25 + 0.75 * float(torch.rand((), generator=rng))
                aim = self._aim(lesson, label, self.config.adversarial and epoch > 0)
                forged = self._forged(lesson, x, aim, next(kinds), share, rng)
                signs = torch.randint(0, 2, x.shape, generator=rng) * 2.0 - 1.0
                noisy = (x + share * lesson.radius * signs).clamp(0.0, 1.0)
                images = torch.cat([x, noisy[: len(x) // 4], forged])
                target = torch.zeros(len(images))
                target[-len(forged) :] = 1.0
                score = self._score(images)
                adam.zero_grad()
                loss = F.binary_cross_entropy_with_logits(score, target)
                loss.backward()  # type: ignore[no-untyped-call]
                adam.step()
                right += int(((score > 0) == (target > 0)).sum())
                seen += len(images)
        self.eval().requires_grad_(False)
        return FitReport(rows=len(lesson.x), figures={"training_accuracy": right / max(1, seen)})

    def _forged(
        self,
        lesson: Lesson,
        x: Tensor,
        aim: RowLoss,
        kind: Literal["linf", "l2", "patches"],
        share: float,
        rng: Generator,
    ) -> Tensor:
        if kind == "linf":
            return lesson.forge(x, aim, share)
        if kind == "l2":
            # Attacks of least L2 norm go as far as they must: up to what repaints the image.
            return lesson.forge(x, aim, _FARTHEST * share**1.5, "l2")
        return _patched(x, share * lesson.radius, rng)

    def _aim(self, lesson: Lesson, label: Tensor, evades: bool) -> RowLoss:
        """What forgeries maximise: the classifier's error, and perhaps the detector's."""

        def loss(x: Tensor) -> Tensor:
            logits = lesson.look(x).logits[RAW]
            value = F.cross_entropy(logits, label, reduction="none")
            return value - self.config.evasion * F.softplus(self._score(x)) if evades else value

        return loss

    def _score(self, x: Tensor) -> Tensor:
        grey = x.mean(dim=1, keepdim=True)
        left = F.conv2d(F.pad(grey, (1,) * 4, mode="replicate"), self.filters)
        # Small residuals are what matters: large ones are edges.
        y = torch.tanh(10.0 * torch.cat([left, left.abs()], dim=1))
        if self.config.content:
            y = torch.cat([y, grey], dim=1)
        y = F.relu(self.second(F.relu(self.first(y))))
        pooled = torch.cat([y.mean(dim=(2, 3)), y.amax(dim=(2, 3))], dim=1)
        score: Tensor = self.last(pooled)[:, 0]
        return score
