"""Generated images of a while ago, so that a discriminator does not chase only the last ones."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


class ImagePool:
    """Keeps up to `size` images (Shrivastava et al. 2017, arXiv:1612.07828)."""

    def __init__(self, size: int = 50) -> None:
        self.size = size
        self.images: list[Tensor] = []

    def exchange(self, made: Tensor, generator: Generator) -> Tensor:
        """[N, C, H, W], of which about half are older ones; theirs are kept instead."""
        answered: list[Tensor] = []
        for one in made.detach():
            if len(self.images) < self.size:
                # A copy: a view would keep its whole batch.
                self.images.append(one.clone())
                answered.append(one)
            elif float(torch.rand((), generator=generator)) < 0.5:
                place = int(torch.randint(0, self.size, (), generator=generator))
                answered.append(self.images[place])
                self.images[place] = one.clone()
            else:
                answered.append(one)
        return torch.stack(answered)
