"""All scores of a set of generated images, each beside its floor and its ceilings."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.errors import ConfigError
from firewall.generate.coverage import Features, coverage
from firewall.generate.extractor import Extractor
from firewall.generate.privacy import by_distance, copies, membership
from firewall.generate.scores import frechet_distance, inception_score, kernel_distance
from firewall.train.fit_network import Images

Labels = npt.NDArray[np.int64]
#: Fewest images of each kind: of fewer, no distance between distributions means anything.
_LEAST_ROWS = 20
#: Fewest rows for which a class gets a score of its own; a covariance needs that many.
_LEAST = 100
#: Most rows that are compared; their distance matrix must fit into memory.
_COMPARED = 10_000
#: Most rows of each set in the membership attack on pixels, which are large.
_ATTACKED = 5000


def judge(
    extractor: Extractor, train: Images, test: Images, made: Images, *, seed: int = 0
) -> dict[str, Any]:
    """Score generated images.

    Args:
        extractor: computes the features.
        train: real images that the generator was trained on.
        test: other real images.
        made: generated images, with the classes that were asked for.
        seed: of subsets and of the noise images.

    Raises:
        ConfigError: there are too few images, they are all alike, or the extractor does not know
            real images.

    Returns:
        Scores at equal numbers of rows. `floor` holds the scores of real training images,
        `ceilings` those of noise and of per-class means; a good distance is near the floor. The
        extractor was trained on the training images, which raises the floor a little, so
        `floor.held_out` compares two halves of the test images, at half as many rows. The attacks
        of `privacy` use all generated and all training images.

    """
    for name, images in (("training", train), ("test", test), ("generated", made)):
        if len(images) < _LEAST_ROWS:
            raise ConfigError(
                f"judging: {len(images)} {name} images; expected at least {_LEAST_ROWS}"
            )
    rng = np.random.default_rng(seed)
    seen, _ = extractor(train.x.numpy())
    unseen, unseen_logs = extractor(test.x.numpy())
    accuracy = _standing(unseen_logs, test.y.numpy())
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
        "extractor_accuracy": accuracy,
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
        score, deviation = inception_score(logs[ours], seed=seed)
        found["inception_score"] = {"value": score, "deviation": deviation}
        found["class_agreement"] = float((logs.argmax(axis=1) == made.y.numpy()).mean())
    if not _finite(found):
        raise ConfigError(
            "judging: scores are not finite; are all images, or all their features, alike?"
        )
    return found


def _standing(logs: Features | None, y: Labels) -> float | None:
    """Accuracy of the extractor on real test images; None where it has no logits.

    Raises:
        ConfigError: it is too low for its features to say anything about images.

    """
    if logs is None:
        return None
    accuracy = float((logs.argmax(axis=1) == y).mean())
    # Halfway from naming the commonest class to being always right.
    floor = 0.5 + 0.5 * float(np.bincount(y).max() / len(y))
    if accuracy < floor:
        raise ConfigError(
            f"extractor: names {accuracy:.1%} of real test images rightly, under {floor:.1%}; its "
            "features say nothing about images. Bring more training images, or an extractor of "
            "your own"
        )
    return accuracy


def _finite(found: Any) -> bool:
    if isinstance(found, dict):
        return all(map(_finite, found.values()))
    return not isinstance(found, float) or math.isfinite(found)


def _means(train: Images, classes: int) -> npt.NDArray[np.float32]:
    """Mean image of each class, [K, C, H, W] in [0, 1]; the overall mean for an empty class."""
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
    """Membership attack on features, and the same attack on innocent images as a control.

    The extractor was trained on the members, which alone makes them stand out. The control replaces
    the generated images by half of the test images, from which nothing can be learnt.
    """
    told = _attack(train, test, generated)
    order = np.random.default_rng(seed).permutation(len(test))
    innocent, others = test[order[: len(test) // 2]], test[order[len(test) // 2 :]]
    return told | {
        "innocent": _attack(train, others, innocent),
        "copies": float(copies(generated, train, test).mean()),
    }


def _pixels(train: Images, test: Images, made: Images, seed: int) -> dict[str, Any]:
    """Membership attack on pixels."""
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
