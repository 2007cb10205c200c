"""Surrogates of a target, trained on the attacker's own data."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from firewall.attack.oracle import Oracle
from firewall.attack.surrogate import SurrogateTraining, labelled_by
from firewall.evaluation.request import Request, check_data
from firewall.evaluation.target import Target


def trained_surrogates(
    target: Target,
    request: Request,
    x: npt.NDArray[np.float32],
    y: npt.NDArray[np.int64],
    training: SurrogateTraining | None = None,
) -> list[tuple[str, nn.Module]]:
    """Two networks: by the data's own labels, and by what the target answers.

    Args:
        target: never asked for the first, once an image for the second.
        request: its rate and seed are used.
        x: [N, C, H, W] images in [0, 1] that the target was not trained on, if the attacker is
            to be an honest one.
        y: [N] labels.
        training: how.

    Raises:
        ConfigError: the data does not fit the target.

    """
    check_data(x, y, target.shape, target.classes, "--surrogate-data")
    images, labels = torch.from_numpy(x), torch.from_numpy(y)
    train = training or SurrogateTraining()
    own = train(images, labels, target.classes, seed=request.seed)
    oracle = Oracle(target.victim(request.rate).replies, len(x), 1)
    answered, said = labelled_by(oracle, images)
    asked = train(answered, said, target.classes, seed=request.seed + 1)
    return [("no query", own), (f"{len(x)} queries", asked)]
