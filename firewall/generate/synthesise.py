"""Images from a generator, and from the plainest one there is."""

from __future__ import annotations

import torch

from firewall.generate.networks import GenerativeNetwork
from firewall.train.fit_network import Images

_BATCH = 500


def sample(generator: GenerativeNetwork, rows: int, *, seed: int) -> Images:
    """As many images of each class.

    Args:
        generator: frozen.
        rows: in all; what classes do not divide is left out.
        seed: of the codes.

    """
    draws = torch.Generator().manual_seed(seed)
    label = torch.arange(generator.classes).repeat_interleave(rows // generator.classes)
    made: list[torch.Tensor] = []
    with torch.no_grad():
        for part in torch.split(label, _BATCH):
            code = torch.randn(len(part), generator.latent, generator=draws)
            made.append((generator(code, part) * 255).round().to(torch.uint8))
    return Images(torch.cat(made), label)


def gaussian(data: Images, rows: int, *, components: int = 100, seed: int = 0) -> Images:
    """Samples of a normal distribution for each class, along its principal components.

    Even these are known to help robust training (Gowal et al. 2021, arXiv:2110.09468): a generator
    has to better them to have been worth its while.

    Args:
        data: [N, C, H, W] uint8 with labels.
        rows: in all.
        components: kept of each class; fewer where it has fewer images.
        seed: of every draw.

    """
    draws = torch.Generator().manual_seed(seed)
    classes = sorted(set(data.y.tolist()))
    each = rows // len(classes)
    made: list[torch.Tensor] = []
    for one in classes:
        x = data.x[data.y == one].flatten(1).float() / 255
        mean = x.mean(dim=0)
        count = min(components, len(x) - 1, x.shape[1])
        if count < 1:
            made.append(mean.expand(each, -1))
            continue
        _, deviation, axes = torch.linalg.svd(x - mean, full_matrices=False)
        spread = deviation[:count] / (len(x) - 1) ** 0.5
        made.append(mean + torch.randn(each, count, generator=draws) * spread @ axes[:count])
    pixels = (torch.cat(made).clamp(0.0, 1.0) * 255).round().to(torch.uint8)
    label = torch.tensor(classes).repeat_interleave(each)
    return Images(pixels.view(-1, *data.x.shape[1:]), label)
