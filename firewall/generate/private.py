"""A discriminator that learns with differential privacy (DP-SGD, Abadi et al. 2016,
arXiv:1607.00133; of a GAN, Xie et al. 2018, arXiv:1802.06739).

Each real row's gradient is cut to a length and noise is added to their sum, so that no single image
decides anything. The generator learns from the discriminator alone, so it and all its images are as
private as that. What it has cost is counted by Opacus; gradients row by row are torch.func's, since
Opacus's hooks would stay on a network that generated rows go through as well.

Noise and choice of rows begin from the operating system: whoever knew the seed could take them off
again. So a private run is the one that does not give the same bits twice. The generator (PCG64) is
no cryptographic one, and floating-point noise is not proof against every attack (Mironov 2012).
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from firewall.bundle.spec import Spec
from firewall.errors import ConfigError
from firewall.generate.losses import GanLoss


class PrivateSpec(Spec):
    """`[augment.gan.private]`."""

    #: Standard deviation of the noise, in lengths of `clip`.
    noise: float = Field(default=1.0, gt=0, le=100)
    #: Length to which a row's gradient is cut.
    clip: float = Field(default=1.0, gt=0, le=1e4)
    #: Probability with which the promise of epsilon may fail; below one by the number of images.
    delta: float = Field(default=1e-5, gt=0, lt=1)


class PrivateRows:
    """The real half of the discriminator's gradient."""

    def __init__(self, network: nn.Module, spec: PrivateSpec, rows: int, batch: int) -> None:
        """Wrap a discriminator, whose rows must not depend on each other.

        Args:
            network: takes images and labels; its weights stay where they are.
            spec: how private.
            rows: of the data.
            batch: rows of a step, on average.

        Raises:
            ConfigError: Opacus is not installed, or `delta` promises nothing.

        """
        if find_spec("opacus") is None:
            raise ConfigError(
                "augment.gan.private: needs Opacus; pip install 'robustness-firewall[private]'"
            )
        if spec.delta >= 1 / rows:
            raise ConfigError(
                f"augment.gan.private.delta: {spec.delta:g}; with {rows} images anything from "
                f"{1 / rows:.2g} up would allow one of them to be published whole"
            )
        self.spec, self.rows, self.batch = spec, rows, batch
        self._network = network
        # 128 bits of the operating system's. torch's own generator has 32, which can be searched.
        self._secret = np.random.default_rng()

    def draw(self) -> Tensor:
        """Rows of a step: each with the same probability, for itself, as the accounting wants."""
        chosen = self._secret.random(self.rows) < self.batch / self.rows
        return torch.from_numpy(np.flatnonzero(chosen))

    def gradients(self, loss: GanLoss, x: Tensor, label: Tensor) -> list[Tensor]:
        """Cut, summed and noised gradients, over the batch's usual size.

        Args:
            loss: the game.
            x: [N, C, H, W] real images, by `draw`; N may be 0.
            label: [N].

        Returns:
            One for each parameter.

        """
        parameters = {name: one.detach() for name, one in self._network.named_parameters()}
        summed = [torch.zeros_like(one) for one in parameters.values()]
        if len(x):

            def judged(weights: dict[str, Tensor], row: Tensor, own: Tensor) -> Any:
                logit = functional_call(self._network, weights, (row[None], own[None]))
                # Generated rows count elsewhere: here a constant, which has no slope.
                return loss.discriminator(logit, torch.zeros_like(logit))

            each = vmap(grad(judged), in_dims=(None, 0, 0))(parameters, x, label)
            rows = list(each.values())
            length = torch.stack([one.flatten(1).square().sum(dim=1) for one in rows]).sum(dim=0)
            scale = (self.spec.clip / length.sqrt().clamp_min(1e-12)).clamp_max(1.0)
            summed = [torch.einsum("n,n...->...", scale, one) for one in rows]
        deviation = self.spec.noise * self.spec.clip
        return [(one + deviation * self._noise(one)) / self.batch for one in summed]

    def _noise(self, like: Tensor) -> Tensor:
        drawn = self._secret.standard_normal(tuple(like.shape), np.float32)
        return torch.from_numpy(np.asarray(drawn)).to(like)


def epsilon(spec: PrivateSpec, rows: int, batch: int, steps: int) -> float:
    """What a training has spent, at `delta`.

    Args:
        spec: how private.
        rows: of the data.
        batch: rows of a step, on average.
        steps: of the discriminator.

    """
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(spec.noise, batch / rows, steps)]
    return float(accountant.get_epsilon(delta=spec.delta))
