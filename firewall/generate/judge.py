"""All scores of a set of generated images, between their floor and their ceilings."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.generate.extractor import Extractor
from firewall.generate.privacy import by_distance, copies, membership
from firewall.generate.scores import (
    Features,
    coverage,
    frechet_distance,
    inception_score,
    kernel_distance,
)
from firewall.train.fit_network import Images

Labels = npt.NDArray[np.int64]
#: Rows of a class below which it gets no score of its own: a covariance needs some.
_LEAST = 100
#: Rows that are compared at most; a distance matrix of them has to fit.
_COMPARED = 10_000
#: Members and others of the attack on pixels, which are many numbers each.
_ATTACKED = 5000


def judge(
    extractor: Extractor, train: Images, test: Images, made: Images, *, seed: int = 0
) -> dict[str, Any]:
    """Score generated images.

    Args:
        extractor: whose features count.
        train: real images that the generator has seen.
        test: real ones that it has not.
        made: generated, with the classes that were asked for.
        seed: of subsets, and of the noise of a ceiling.

    Returns:
        Scores at equal numbers of rows. `floor` is what real training images get, `ceilings` what
        noise and per-class means get; distances are good near the floor. The extractor has learnt
        from training images, which lifts the floor a little: `floor.held_out` is of two halves of
        the test images, at half as many rows. The attacks of `privacy` have every generated image
        and every training image.

    """
    rng = np.random.default_rng(seed)
    seen, _ = extractor(train.x.numpy())
    unseen, _ = extractor(test.x.numpy())
    features, logs = extractor(made.x.numpy())
    rows = min(len(seen), len(unseen), len(features), _COMPARED)
    real, held, ours = (rng.permutation(len(one))[:rows] for one in (seen, unseen, features))
    label = made.y.numpy()[ours]
    shape = (rows, *train.x.shape[1:])
    noise, _ = extractor(rng.random(shape, np.float32))
    average, _ = extractor(_means(train, int(made.y.max()) + 1)[label])
    half = rows // 2
    found: dict[str, Any] = {
        "extractor": extractor.sha256,
        "rows": rows,
        "frechet_distance": frechet_distance(unseen[held], features[ours]),
        "floor": {
            "frechet_distance": frechet_distance(unseen[held], seen[real]),
            "held_out": frechet_distance(unseen[held[:half]], unseen[held[half : 2 * half]]),
        }
        | _near(unseen[held], seen[real], seed),
        "ceilings": {
            "noise": {"frechet_distance": frechet_distance(unseen[held], noise)},
            "class means": {"frechet_distance": frechet_distance(unseen[held], average)},
        },
        "by_class": _by_class(unseen[held], test.y.numpy()[held], features[ours], label),
        "privacy": _privacy(seen, unseen, features, seed)
        | {"pixels": _pixels(train, test, made, seed)},
    } | _near(unseen[held], features[ours], seed)
    if logs is not None:
        score, deviation = inception_score(logs[ours])
        found["inception_score"] = {"value": score, "deviation": deviation}
        found["class_agreement"] = float((logs.argmax(axis=1) == made.y.numpy()).mean())
    return found


def _means(train: Images, classes: int) -> npt.NDArray[np.float32]:
    """[K, C, H, W] in [0, 1]: the mean image of each class; of all where a class has none."""
    x, y = train.x.numpy(), train.y.numpy()
    whole = x.mean(axis=0, dtype=np.float64)
    means = [
        x[y == label].mean(axis=0, dtype=np.float64) if (y == label).any() else whole
        for label in range(classes)
    ]
    scaled: npt.NDArray[np.float32] = (np.stack(means) / 255).astype(np.float32)
    return scaled


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


def _privacy(train: Features, test: Features, generated: Features, seed: int) -> dict[str, Any]:
    """The attack on features; and, since the extractor itself has learnt from the members, what it
    finds where there is nothing to find: half of the test images in place of the generated ones.
    """
    told = _attack(train, test, generated)
    order = np.random.default_rng(seed).permutation(len(test))
    innocent, others = test[order[: len(test) // 2]], test[order[len(test) // 2 :]]
    return told | {
        "innocent": _attack(train, others, innocent),
        "copies": float(copies(generated, train, test).mean()),
    }


def _pixels(train: Images, test: Images, made: Images, seed: int) -> dict[str, Any]:
    """The attack on the images themselves."""
    rng = np.random.default_rng(seed)
    members, others, generated = (
        (one.x.numpy()[rng.permutation(len(one))[:most]].reshape(-1, one.x[0].numel()) / 255.0)
        for one, most in ((train, _ATTACKED), (test, _ATTACKED), (made, len(made)))
    )
    return _attack(
        members.astype(np.float32), others.astype(np.float32), generated.astype(np.float32)
    )


def _attack(
    members: npt.NDArray[Any], others: npt.NDArray[Any], generated: npt.NDArray[Any]
) -> dict[str, Any]:
    told = membership(*by_distance(members, others, generated))
    return {
        "membership_auroc": told.auroc,
        "true_positives_at": {str(rate): value for rate, value in told.true_positives.items()},
    }
