"""Whom a denoiser that learns in a game plays against: a judge of patches, and its turns."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Adversary:
    """Least squares (Mao et al. 2017, arXiv:1611.04076): clean images are to be 1, made ones 0.

    It is not served, so it is no part of a stage.
    """

    def __init__(self, width: int) -> None:
        """Weights that are always the same.

        Args:
            width: channels of the first layer.

        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self._judge = _PatchJudge(width)
        self._adam = torch.optim.Adam(self._judge.parameters(), 2e-4, (0.5, 0.999))

    def fooled(self, made: Tensor) -> Tensor:
        """How far [N, C, H, W] is from being taken for clean: for the denoiser to go down."""
        self._judge.requires_grad_(False)
        loss: Tensor = (self._judge(made) - 1.0).square().mean()
        return loss

    def learn(self, clean: Tensor, made: Tensor) -> None:
        """Its own turn."""
        self._judge.requires_grad_(True)
        told = (self._judge(clean) - 1.0).square().mean()
        told = told + self._judge(made.detach()).square().mean()
        self._adam.zero_grad()
        told.backward()
        self._adam.step()


class _PatchJudge(nn.Module):
    """[N, C, H, W] in [0, 1] to a logit for each patch; each channel by itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 4, stride=2, padding=1)
        self.second = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.last = nn.Conv2d(2 * width, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = 2.0 * x.reshape(-1, 1, *x.shape[2:]) - 1.0
        y = F.leaky_relu(self.second(F.leaky_relu(self.first(y), 0.2)), 0.2)
        logits: Tensor = self.last(y)
        return logits
