"""A small network that takes perturbations out."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor
from torch.nn import functional as F

from firewall.stages import API_VERSION, RAW, Denoiser, FitReport, Lesson, StageConfig
from firewall_plugins.denoisers.forgeries import forged
from firewall_plugins.denoisers.perturbation_network import PerturbationNetwork


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
        self.network = PerturbationNetwork(config.width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] in [0, 1] to the same; each channel by itself."""
        cleaned: Tensor = x + self.network(x)
        return cleaned.clamp(0.0, 1.0)

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
                cleaned = seen + self.network(seen)
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

        return forged(lesson, x, label, 0.25 + 0.75 * float(torch.rand((), generator=rng)))

    def _loss(self, lesson: Lesson, cleaned: Tensor, wanted: Tensor) -> Tensor:
        if self.config.goal == "pixels":
            return F.mse_loss(cleaned, wanted)
        with torch.no_grad():
            logits = lesson.look(wanted).logits[RAW]
        said = lesson.look(cleaned.clamp(0.0, 1.0)).logits[RAW]
        return (said - logits).abs().mean() + F.mse_loss(cleaned, wanted)
