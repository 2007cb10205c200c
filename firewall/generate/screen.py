"""Which generated images may join the mix: clearly of their class, no copies, none twice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from firewall.generate.coverage import Features
from firewall.generate.extractor import Extractor
from firewall.generate.privacy import copies, nearest
from firewall.train.fit_network import Images

#: Generated rows that are nearer to each other than this share of the usual distance are one.
_SAME = 0.1


@dataclass(frozen=True)
class Screened:
    """What was kept, and why the rest was not.

    Attributes:
        kept: [N] bool.
        unsure: rows that the labeller gives another class, or too little of their own.
        copied: rows that lie as near to a training image as hardly any other image does.
        repeated: rows that an earlier one all but equals.

    """

    kept: npt.NDArray[np.bool_]
    unsure: int
    copied: int
    repeated: int


def screen(
    extractor: Extractor,
    made: Images,
    train: Images,
    held: Images,
    *,
    confidence: float = 0.8,
    quantile: float = 0.01,
) -> Screened:
    """Screen generated images.

    Args:
        extractor: with logits, of a classifier that is not robust: it must know its classes well,
            and what fools it is not asked here.
        made: generated.
        train: what the generator has seen.
        held: real images that it has not, by which a copy is told from an image of the same kind.
        confidence: least probability of the class that was asked for; 0 does not ask for it.
        quantile: share of held images that lie nearer to a training image than a copy's limit.

    """
    features, logs = extractor(made.x.numpy())
    label = made.y.numpy()
    kept = np.ones(len(label), np.bool_)
    unsure = np.zeros(len(label), np.bool_)
    if logs is not None and confidence > 0:
        own = np.exp(logs[np.arange(len(label)), label])
        unsure = (logs.argmax(axis=1) != label) | (own < confidence)
    seen, _ = extractor(train.x.numpy())
    others, _ = extractor(held.x.numpy())
    copied = copies(features, seen, others, quantile=quantile)
    kept &= ~unsure & ~copied
    repeated = _repeated(features, kept, float(np.median(nearest(others, seen)[0])))
    kept &= ~repeated
    return Screened(kept, int(unsure.sum()), int((copied & ~unsure).sum()), int(repeated.sum()))


def _repeated(
    features: Features, kept: npt.NDArray[np.bool_], usual: float
) -> npt.NDArray[np.bool_]:
    """[N]: rows that lie next to an earlier one that is kept."""
    found = np.zeros(len(features), np.bool_)
    rows = np.flatnonzero(kept)
    if len(rows) < 2:
        return found
    size = 1024
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        earlier = rows[: start + len(part)]
        squares = (
            (features[part] ** 2).sum(axis=1)[:, None]
            + (features[earlier] ** 2).sum(axis=1)[None]
            - 2.0 * features[part] @ features[earlier].T
        )
        # Only what comes before counts.
        squares[earlier[None, :] >= part[:, None]] = np.inf
        found[part] = np.sqrt(squares.clip(0)).min(axis=1) < _SAME * usual
    return found
