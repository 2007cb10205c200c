"""All scores of a set of generated images, between their floor and their ceilings."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.train.gan.extractor import Extractor
from firewall.train.gan.privacy import by_distance, copies, membership
from firewall.train.gan.scores import (
    Features,
    coverage,
    frechet_distance,
    inception_score,
    kernel_distance,
)

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
#: Rows of a class below which it gets no score of its own: a covariance needs some.
_LEAST = 100


def judge(
    extractor: Extractor,
    train: tuple[Floats, Labels],
    test: tuple[Floats, Labels],
    generated: tuple[Floats, Labels],
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Score generated images.

    Args:
        extractor: whose features count.
        train: real images [N, C, H, W] in [0, 1] that the generator has seen, with labels [N].
        test: real ones that it has not.
        generated: with the classes that were asked for.
        seed: of subsets, and of the noise of a ceiling.

    Returns:
        Scores at equal numbers of rows. `floor` is what real training images get, `ceilings` what
        noise and per-class means get; distances are good near the floor.

    """
    rng = np.random.default_rng(seed)
    rows = min(len(train[0]), len(test[0]), len(generated[0]))
    (x, x_label), (held, held_label), (made, made_label) = (
        _sample(one, rows, rng) for one in (train, test, generated)
    )
    real, _ = extractor(x)
    unseen, _ = extractor(held)
    features, logs = extractor(made)
    noise, _ = extractor(rng.random(x.shape, np.float32))
    means = np.stack([x[x_label == label].mean(axis=0) for label in made_label])
    average, _ = extractor(means.astype(np.float32))
    found: dict[str, Any] = {
        "extractor": extractor.sha256,
        "rows": rows,
        "frechet_distance": frechet_distance(unseen, features),
        "floor": {"frechet_distance": frechet_distance(unseen, real)} | _near(unseen, real, seed),
        "ceilings": {
            "noise": {"frechet_distance": frechet_distance(unseen, noise)},
            "class means": {"frechet_distance": frechet_distance(unseen, average)},
        },
        "by_class": _by_class(unseen, held_label, features, made_label),
        "privacy": _privacy(real, unseen, features),
    } | _near(unseen, features, seed)
    if logs is not None:
        score, deviation = inception_score(logs)
        found["inception_score"] = {"value": score, "deviation": deviation}
        found["class_agreement"] = float((logs.argmax(axis=1) == made_label).mean())
    return found


def _sample(
    one: tuple[Floats, Labels], rows: int, rng: np.random.Generator
) -> tuple[Floats, Labels]:
    order = rng.permutation(len(one[0]))[:rows]
    return one[0][order], one[1][order]


def _near(real: Features, generated: Features, seed: int) -> dict[str, Any]:
    distance, deviation = kernel_distance(real, generated, seed=seed)
    return {
        "kernel_distance": {"value": distance, "deviation": deviation},
        **asdict(coverage(real, generated)),
    }


def _by_class(
    real: Features, real_label: Labels, generated: Features, label: Labels
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in np.unique(real_label).tolist():
        theirs, ours = real[real_label == one], generated[label == one]
        if min(len(theirs), len(ours)) < _LEAST:
            continue
        rows = min(len(theirs), len(ours))
        found[str(one)] = {
            "frechet_distance": frechet_distance(theirs[:rows], ours[:rows]),
            **asdict(coverage(theirs[:rows], ours[:rows])),
        }
    return found


def _privacy(train: Features, test: Features, generated: Features) -> dict[str, Any]:
    told = membership(*by_distance(train, test, generated))
    return {
        "membership_auroc": told.auroc,
        "true_positives_at": {str(rate): value for rate, value in told.true_positives.items()},
        "copies": float(copies(generated, train, test).mean()),
    }
