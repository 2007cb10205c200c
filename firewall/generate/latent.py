"""Arithmetic with codes: what glasses are is a man with glasses less a man without (Radford et al.
2016, arXiv:1511.06434).
"""

from __future__ import annotations

import torch
from torch import Tensor


def direction(codes: Tensor, has: Tensor) -> Tensor:
    """[D]: from the mean code without an attribute to the mean with it.

    Args:
        codes: [N, D].
        has: [N] bool, of each code's image; some of either.

    """
    if not bool(has.any()) or bool(has.all()):
        raise ValueError("has: an attribute that all codes have, or none, has no direction")
    found: Tensor = codes[has].mean(dim=0) - codes[~has].mean(dim=0)
    return found


def arithmetic(first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """Code by code first - second + third, at the length that codes have.

    A sum of them is too long, and a generator has not seen such codes.

    Args:
        first: [..., D]; each may be a mean of several codes.
        second: [..., D].
        third: [..., D].

    """
    total = first - second + third
    length = torch.linalg.vector_norm(total, dim=-1, keepdim=True).clamp_min(1e-12)
    code: Tensor = total * (total.shape[-1] ** 0.5 / length)
    return code


def interpolate(first: Tensor, second: Tensor, steps: int) -> Tensor:
    """[steps, D]: along the sphere on which codes lie (White 2016, arXiv:1609.04468), both ends
    included.
    """
    a = first / torch.linalg.vector_norm(first)
    b = second / torch.linalg.vector_norm(second)
    angle = torch.acos((a @ b).clamp(-1.0, 1.0))
    share = torch.linspace(0.0, 1.0, steps)[:, None]
    if float(angle) < 1e-4:
        return first + share * (second - first)
    sine = torch.sin(angle)
    way = torch.sin((1 - share) * angle) / sine * a + torch.sin(share * angle) / sine * b
    lengths = torch.linalg.vector_norm(torch.stack([first, second]), dim=1)
    codes: Tensor = way * (lengths[0] + share * (lengths[1] - lengths[0]))
    return codes
