"""Whether a generator has learnt its images by heart, and what that tells of who was among them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from firewall.generate.coverage import Features

#: Rows of a distance matrix at a time; generated images may be many.
_ROWS = 256


@dataclass(frozen=True)
class Membership:
    """An attack that says of an image whether the generator was trained on it.

    Attributes:
        auroc: 0.5 is a guess.
        true_positives: share of members that are found out, by the share of others that are
            accused wrongly: of a guess, the same number. Averages hide the few that are betrayed
            (Carlini et al. 2022, arXiv:2112.03570).

    """

    auroc: float
    true_positives: dict[float, float]


def nearest(of: Features, among: Features) -> tuple[Features, npt.NDArray[np.intp]]:
    """Distance [N] from each row to the nearest among others, and which one that is [N].

    Which one is found in float32 and without what all of them share, since generated images are
    many; how far it is, in float64.
    """
    apart = np.empty(len(of))
    which = np.empty(len(of), np.intp)
    # Around their mean, so that no digits are lost to a common offset.
    middle = among.mean(axis=0, dtype=np.float64)
    others = np.ascontiguousarray((among - middle).astype(np.float32).T)
    half = 0.5 * (others**2).sum(axis=0)
    for start in range(0, len(of), _ROWS):
        rows = of[start : start + _ROWS]
        every = (rows - middle).astype(np.float32) @ others
        np.subtract(half, every, out=every)
        found = every.argmin(axis=1)
        which[start : start + len(rows)] = found
        difference = rows.astype(np.float64) - among[found]
        apart[start : start + len(rows)] = np.sqrt((difference**2).sum(axis=1))
    return apart, which


def membership(
    members: Features, others: Features, *, rates: tuple[float, ...] = (0.001, 0.01)
) -> Membership:
    """Judge an attack by its scores.

    Args:
        members: [N] of images that were trained on; higher says "member".
        others: [M] of images that were not.
        rates: of wrong accusations.

    """
    ordered = np.sort(others)
    below = np.searchsorted(ordered, members, side="left")
    equal = np.searchsorted(ordered, members, side="right") - below
    found: dict[float, float] = {}
    for rate in rates:
        allowed = int(np.floor(rate * len(ordered)))
        # More than all but so many others.
        threshold = ordered[len(ordered) - 1 - allowed]
        found[rate] = float((members > threshold).mean())
    return Membership(float((below + 0.5 * equal).mean() / len(ordered)), found)


def by_distance(
    members: Features, others: Features, generated: Features
) -> tuple[Features, Features]:
    """Scores of the attacker who has generated images only: how near the nearest one is (Chen et
    al. 2020, arXiv:1909.03935).
    """
    return -nearest(members, generated)[0], -nearest(others, generated)[0]


def copies(
    generated: Features, train: Features, test: Features, *, quantile: float = 0.01
) -> npt.NDArray[np.bool_]:
    """[N]: which generated rows are nearer to a training image than all but a share of test images
    are: copies, rather than images of the same kind.
    """
    usual = nearest(test, train)[0]
    limit = np.quantile(usual, quantile)
    near: npt.NDArray[np.bool_] = nearest(generated, train)[0] < limit
    return near
