"""The shipped detector that sees pixels alone, for photographs before any classifier."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from firewall.stages import API_VERSION, Detector, Evidence, Needs, StageConfig, StageFault, Tier
from firewall_plugins.weights import shipped

#: Of the architecture below; weights of another version are refused.
VERSION = "core-pixels 1"
#: Pixels a side of the smallest image: less is not worth judging.
SMALLEST = 32

#: High-pass filters of steganalysis (Fridrich and Kodovsky 2012): differences of first, second and
#: mixed order, where the content of a photograph is weak and a perturbation is not.
_FILTERS = (
    ((0.0, 0.0, 0.0), (0.0, -1.0, 1.0), (0.0, 0.0, 0.0)),
    ((0.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 1.0, 0.0)),
    ((0.0, 0.0, 0.0), (0.5, -1.0, 0.5), (0.0, 0.0, 0.0)),
    ((0.0, 0.5, 0.0), (0.0, -1.0, 0.0), (0.0, 0.5, 0.0)),
    ((-0.25, 0.5, -0.25), (0.5, -1.0, 0.5), (-0.25, 0.5, -0.25)),
)
#: Residuals are cut here, in 255ths: what is larger is an edge of the picture.
_CUT = 12.0


class CorePixels(Detector):
    """Logit of "forged" from high-pass residuals of each channel, by a small CNN.

    It was taught on photographs, on photographs handled in the usual ways (JPEG, WebP, resizing,
    noise, ...) and on forgeries of several classifiers: `python -m firewall.core.build`. It takes
    an image of any size from 32 pixels a side.
    """

    api_version: ClassVar[int] = API_VERSION
    tier: ClassVar[Tier] = "cheap"

    class Config(StageConfig):
        """Settings."""

        #: `untrained` is for whoever trains it.
        weights: Literal["shipped", "untrained"] = "shipped"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.filters: Tensor
        bank = torch.tensor(_FILTERS).repeat(3, 1, 1)[:, None]
        self.register_buffer("filters", bank, persistent=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body = nn.Sequential(
                nn.Conv2d(len(bank), 16, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(16),
                nn.ReLU(),
                *_separable(16, 48, 2),
                nn.ReLU(),
                *_separable(48, 96, 2),
                nn.ReLU(),
                _Residual(96),
                *_separable(96, 96, 2),
                nn.ReLU(),
                _Residual(96),
            )
            self.head = nn.Sequential(nn.Linear(3 * 96, 32), nn.ReLU(), nn.Linear(32, 1))
        if config.weights == "shipped":
            # Counters of batches are no weights.
            names = [one for one in self.state_dict() if not one.endswith("batches_tracked")]
            self.load_state_dict(shipped("core-pixels", VERSION, names), strict=False)
        self.eval().requires_grad_(False)

    @property
    def needs(self) -> Needs:
        """The image alone."""
        return Needs()

    def forward(self, evidence: Evidence) -> Tensor:
        """Evidence to [N]: a logit.

        Raises:
            StageFault: the images are too small, or of more than three channels.

        """
        x = evidence.raw
        channels, height, width = x.shape[1:]
        if min(height, width) < SMALLEST or channels not in (1, 3):
            raise StageFault(
                f"core-pixels judges images of 1 or 3 channels and at least {SMALLEST} pixels a "
                f"side, not {channels} x {height} x {width}; leave this stage out"
            )
        if channels == 1:
            x = x.expand(-1, 3, -1, -1)
        left = F.conv2d(255.0 * x, self.filters, groups=3)
        y = self.body(left.clamp(-_CUT, _CUT) / 4.0)
        mean = y.mean(dim=(2, 3))
        spread = (y - mean[:, :, None, None]).square().mean(dim=(2, 3))
        pooled = torch.cat([mean, torch.sqrt(spread + 1e-6), y.amax(dim=(2, 3))], dim=1)
        score: Tensor = self.head(pooled)[:, 0]
        return score


class _Residual(nn.Module):
    """Two separable convolutions beside the identity (He et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_separable(channels, channels, 1), nn.ReLU(), *_separable(channels, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.relu(x + self.body(x))
        return y


def _separable(inner: int, outer: int, stride: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=inner, bias=False),
        nn.Conv2d(inner, outer, 1, bias=False),
        nn.BatchNorm2d(outer),
    )
