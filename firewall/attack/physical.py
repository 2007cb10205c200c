"""Forgeries that survive being printed and photographed (Kurakin et al. 2017, arXiv:1607.02533;
Athalye et al. 2018, arXiv:1707.07397): optimised over many ways a camera may see them.

What counts is the share of views under which the forgery holds, on views it was not made on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from firewall.attack.gradient import Model
from firewall.attack.losses import aimed_cross_entropy, cross_entropy
from firewall.attack.norms import Linf, Norm

#: [N, C, H, W] in [0, 1] to the same, seen by a camera; draws from the generator.
View = Callable[[Tensor, Generator], Tensor]


@dataclass(frozen=True)
class Camera:
    """How prints are seen; every row is drawn anew.

    Attributes:
        rotation: up to so many degrees either way.
        scale: from 1 - scale to 1 + scale.
        shift: of the centre, in parts of half a side.
        perspective: tilt, as the relative change of scale from one side to the other.
        blur: standard deviation up to so many pixels.
        brightness: up to so much is added or taken, of a range of 1.
        contrast: factor from 1 - contrast to 1 + contrast, about the middle.
        noise: standard deviation of Gaussian noise up to.
        jpeg: least quality of the JPEG it is saved as, up to 95; 0 is not saved.

    """

    rotation: float = 10.0
    scale: float = 0.1
    shift: float = 0.05
    perspective: float = 0.1
    blur: float = 0.8
    brightness: float = 0.1
    contrast: float = 0.15
    noise: float = 0.02
    jpeg: int = 60

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        """A view of each row: [N, C, H, W] in [0, 1] to the same, with gradients throughout."""
        rows = len(x)

        def draw(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(rows, generator=generator)

        angle = draw(-self.rotation, self.rotation) * math.pi / 180
        size = draw(1 - self.scale, 1 + self.scale)
        shift = torch.stack([draw(-self.shift, self.shift) for _ in range(2)], dim=1)
        tilt = torch.stack([draw(-self.perspective, self.perspective) for _ in range(2)], dim=1)
        seen = _warp(x, angle, size, shift, tilt)
        seen = _blur(seen, draw(0.0, self.blur))
        contrast = draw(1 - self.contrast, 1 + self.contrast).view(-1, 1, 1, 1)
        brightness = draw(-self.brightness, self.brightness).view(-1, 1, 1, 1)
        seen = (seen - 0.5) * contrast + 0.5 + brightness
        grain = torch.randn(x.shape, generator=generator) * draw(0.0, self.noise).view(-1, 1, 1, 1)
        seen = (seen + grain).clamp(0.0, 1.0)
        return jpeg(seen, draw(self.jpeg, 95)) if self.jpeg else seen


@dataclass(frozen=True)
class PhysicalAttack:
    """Settings of the attack: gradient steps on the mean loss over views.

    Attributes:
        radius: of the ball around the print, in units of the image batch.
        steps: of ascent.
        views: of each row, for one step.
        camera: draws them.
        norm: the ball.

    """

    radius: float
    steps: int = 100
    views: int = 8
    camera: View = field(default_factory=Camera)
    norm: Norm = field(default_factory=Linf)

    def __call__(
        self, model: Model, x: Tensor, label: Tensor, *, aimed: bool = False, seed: int = 0
    ) -> Tensor:
        """Attack a batch; arguments and result as `gradient.GradientAttack`."""
        loss = aimed_cross_entropy if aimed else cross_entropy
        generator = torch.Generator().manual_seed(seed)
        delta, past = torch.zeros_like(x), torch.zeros_like(x)
        for number in range(self.steps):
            total = torch.zeros_like(x)
            for _ in range(self.views):
                delta = delta.detach().requires_grad_(True)
                seen = self.camera(x + delta, generator)
                (gradient,) = torch.autograd.grad(loss(model(seen), label).sum(), delta)
                total += gradient
            mean = total.flatten(1).abs().mean(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
            past = 0.75 * past + total / mean
            step = self.radius * (0.2 * (1 - number / self.steps) + 0.01)
            moved = self.norm.project(
                delta.detach() + step * self.norm.direction(past), self.radius
            )
            delta = (x + moved).clamp(0.0, 1.0) - x
        return (x + delta).clamp(0.0, 1.0)


def held_share(
    model: Model,
    forged: Tensor,
    label: Tensor,
    camera: View,
    *,
    aimed: bool = False,
    views: int = 50,
    seed: int = 1_000_000,
) -> Tensor:
    """[N]: the share of new views under which each row fools (or, aimed, says `label`)."""
    generator = torch.Generator().manual_seed(seed)
    hits = torch.zeros(len(forged))
    with torch.no_grad():
        for _ in range(views):
            said = model(camera(forged, generator)).argmax(dim=1)
            hits += ((said == label) == aimed).float()
    return hits / views


def _warp(x: Tensor, angle: Tensor, size: Tensor, shift: Tensor, tilt: Tensor) -> Tensor:
    """Rotate, scale, shift and tilt, bilinear; what lies outside is the border's colour."""
    rows, _, height, width = x.shape
    down, across = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
    plane = torch.stack([across, down, torch.ones_like(down)], dim=-1).view(1, -1, 3)
    matrix = torch.zeros(rows, 3, 3)
    matrix[:, 0, 0], matrix[:, 0, 1], matrix[:, 0, 2] = cos, -sin, shift[:, 0]
    matrix[:, 1, 0], matrix[:, 1, 1], matrix[:, 1, 2] = sin, cos, shift[:, 1]
    matrix[:, 2, 0], matrix[:, 2, 1], matrix[:, 2, 2] = tilt[:, 0], tilt[:, 1], 1.0
    mapped = plane @ matrix.transpose(1, 2)
    grid = (mapped[..., :2] / mapped[..., 2:]).view(rows, height, width, 2)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=True)


def _blur(x: Tensor, sigma: Tensor) -> Tensor:
    """A Gaussian of its own for each row."""
    rows, channels, height, width = x.shape
    reach = min(2, (min(height, width) - 1) // 2)
    if reach < 1:
        return x
    place = torch.arange(-reach, reach + 1, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (place[None] / sigma.clamp_min(1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    flat = F.pad(x.reshape(1, rows * channels, height, width), [reach] * 4, mode="reflect")
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=rows * channels)
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=rows * channels)
    return flat.view(x.shape)


def jpeg(x: Tensor, quality: Tensor) -> Tensor:
    """JPEG's loss: blocks of 8, cosine transform, quantisation; rounding passes gradients.

    Chroma is kept at full resolution. Tables are of ITU-T T.81, annex K, scaled as libjpeg does.

    Args:
        x: [N, 1 or 3, H, W] in [0, 1].
        quality: [N], 1 to 100.

    """
    channels, height, width = x.shape[1:]
    padded = F.pad(x * 255, [0, -width % 8, 0, -height % 8], mode="replicate")
    colours = (
        torch.einsum("kc,nchw->nkhw", _to_ycc(), padded) if channels == 3 else padded
    ) - _middle(channels)
    rows, _, high, wide = padded.shape
    blocks = colours.view(rows, channels, high // 8, 8, wide // 8, 8).permute(0, 1, 2, 4, 3, 5)
    cosine = _cosine()
    found = cosine @ blocks @ cosine.T
    factor = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality) / 100
    tables = _tables()[:channels]
    table = (tables[None] * factor.view(-1, 1, 1, 1)).round().clamp(1, 255)[:, :, None, None]
    scaled = found / table
    rounded = scaled + (scaled.round() - scaled).detach()
    blocks = cosine.T @ (rounded * table) @ cosine
    colours = blocks.permute(0, 1, 2, 4, 3, 5).reshape(rows, channels, high, wide)
    colours = colours + _middle(channels)
    if channels == 3:
        colours = torch.einsum("ck,nkhw->nchw", torch.linalg.inv(_to_ycc()), colours)
    return (colours[..., :height, :width] / 255).clamp(0.0, 1.0)


@lru_cache(maxsize=1)
def _cosine() -> Tensor:
    """The orthonormal transform of eight values."""
    place = torch.arange(8, dtype=torch.float32)
    matrix = torch.cos((2 * place[None] + 1) * place[:, None] * math.pi / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix


@lru_cache(maxsize=1)
def _to_ycc() -> Tensor:
    return torch.tensor(
        [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
    )


@lru_cache(maxsize=1)
def _tables() -> Tensor:
    return torch.tensor([_LUMA, _CHROMA, _CHROMA], dtype=torch.float32)


def _middle(channels: int) -> Tensor:
    return torch.tensor([128.0, 0.0, 0.0][:channels]).view(-1, 1, 1)


_LUMA = [
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
]
_CHROMA = [
    [17, 18, 24, 47, 99, 99, 99, 99],
    [18, 21, 26, 66, 99, 99, 99, 99],
    [24, 26, 56, 99, 99, 99, 99, 99],
    [47, 66, 99, 99, 99, 99, 99, 99],
    *[[99] * 8] * 4,
]
