"""A small network that takes perturbations out."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from firewall.stages import API_VERSION, RAW, Denoiser, FitReport, Lesson, StageConfig


class LearnedDenoiser(Denoiser):
    """A convolutional autoencoder that answers the image less what it takes for perturbation.

    `goal` and `corruption` make of it what the literature has:

    - pixels, forgery: a denoising autoencoder (Meng and Chen 2017, arXiv:1705.09064);
    - logits, forgery: the high-level guided denoiser, which brings the classifier's logits back
      rather than the pixels (Liao et al. 2018, arXiv:1712.02976);
    - logits, noise: the custom-trained denoiser before randomised smoothing (Salman et al. 2020,
      arXiv:2003.01908).

    Before an attacker who knows it, a denoiser is one more layer.
    """

    api_version: ClassVar[int] = API_VERSION

    class Config(StageConfig):
        """Settings."""

        #: Brings back the image, or what the classifier says of it.
        goal: Literal["pixels", "logits"] = "pixels"
        #: What is taken out: forgeries of the classifier, or Gaussian noise.
        corruption: Literal["forgery", "noise"] = "forgery"
        #: Standard deviation of that noise, where values lie in [0, 1].
        sigma: float = Field(default=0.25, gt=0, le=2)
        #: Channels.
        width: int = Field(default=16, ge=4, le=256)
        #: Passes over the lesson's images.
        epochs: int = Field(default=6, ge=1, le=1000)
        #: Images of a step.
        batch: int = Field(default=64, ge=1, le=4096)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width = config.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.down = nn.Conv2d(1, width, 3, padding=1)
            self.deep = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
            self.within = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
            self.up = nn.Conv2d(2 * width, width, 3, padding=1)
            self.out = nn.Conv2d(2 * width, 1, 3, padding=1)
        # Before it has learnt it answers the image as it is.
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] in [0, 1] to the same; each channel by itself."""
        return (x - self._perturbation(x)).clamp(0.0, 1.0)

    def learn(self, lesson: Lesson, rng: Generator) -> FitReport:
        """Train on pairs of corrupted and clean images."""
        self.train().requires_grad_(True)
        adam = torch.optim.Adam(self.parameters(), 2e-3)
        before = after = 0.0
        for _ in range(self.config.epochs):
            before = after = 0.0
            order = torch.randperm(len(lesson.x), generator=rng)
            for rows in torch.split(order, self.config.batch):
                x, label = lesson.x[rows], lesson.label[rows]
                corrupted = self._corrupted(lesson, x, label, rng)
                # Clean images must pass as well.
                seen, wanted = torch.cat([corrupted, x]), torch.cat([x, x])
                # Not clamped: a pixel at the edge would teach nothing.
                cleaned = seen - self._perturbation(seen)
                loss = self._loss(lesson, cleaned, wanted)
                adam.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                adam.step()
                share = len(rows) / len(lesson.x)
                with torch.no_grad():
                    before += share * float(self._loss(lesson, seen, wanted))
                    after += share * float(loss)
        self.eval().requires_grad_(False)
        figures = {"loss_of_leaving_it": before, "loss": after}
        return FitReport(rows=len(lesson.x), figures=figures)

    def _corrupted(self, lesson: Lesson, x: Tensor, label: Tensor, rng: Generator) -> Tensor:
        if self.config.corruption == "noise":
            # Clipped, as the served graph clips what it is sent.
            noise = self.config.sigma * torch.randn(x.shape, generator=rng)
            return (x + noise).clamp(0.0, 1.0)

        def loss(at: Tensor) -> Tensor:
            return F.cross_entropy(lesson.look(at).logits[RAW], label, reduction="none")

        share = 0.25 + 0.75 * float(torch.rand((), generator=rng))
        return lesson.forge(x, loss, share)

    def _loss(self, lesson: Lesson, cleaned: Tensor, wanted: Tensor) -> Tensor:
        if self.config.goal == "pixels":
            return F.mse_loss(cleaned, wanted)
        with torch.no_grad():
            logits = lesson.look(wanted).logits[RAW]
        said = lesson.look(cleaned.clamp(0.0, 1.0)).logits[RAW]
        return (said - logits).abs().mean() + F.mse_loss(cleaned, wanted)

    def _perturbation(self, x: Tensor) -> Tensor:
        channels, height, width = x.shape[1:]
        y = x.reshape(-1, 1, height, width)
        flat = F.relu(self.down(y))
        deep = F.relu(self.within(F.relu(self.deep(flat))))
        # Every value twice along both sides, in operators that every runtime has.
        half = F.relu(self.up(deep))[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
        wide = half.reshape(-1, half.shape[1], 2 * half.shape[2], 2 * half.shape[4])
        wide = F.pad(wide, (0, width % 2, 0, height % 2), mode="replicate")
        left: Tensor = self.out(torch.cat([flat, wide], dim=1))
        return left.reshape(-1, channels, height, width)
