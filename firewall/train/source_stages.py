"""The stages of a guard for a classifier that somebody already has, and how they are taught."""

from __future__ import annotations

from dataclasses import dataclass

from firewall.bundle.spec import GuardSpec, StageSpec
from firewall.sources.taps import PENULTIMATE

#: Share of clean rows that go on to the views: of a classifier here, and of one elsewhere, whose
#: load it is. Two views for 8 % of rows are 1.16 rows a row.
ESCALATION = {"file": 0.15, "remote": 0.08}


@dataclass(frozen=True)
class Teaching:
    """How much learning stages may cost.

    Attributes:
        rows: images of the lesson.
        epochs: of the pixel network.

    """

    rows: int
    epochs: int


def default_stages(taps: tuple[str, ...], teaching: Teaching | None) -> GuardSpec:
    """Choose stages by what there is to see.

    Args:
        taps: features that the classifier gives.
        teaching: how stages learn; None where there are no gradients to learn from.

    """
    stages = [
        StageSpec(kind="denoiser", name="blur", plugin="gaussian-blur", config={"sigma": 1.3}),
        StageSpec(kind="denoiser", name="median", plugin="median"),
        StageSpec(kind="detector", name="noise-floor", plugin="noise-floor"),
    ]
    if teaching is not None and PENULTIMATE in taps:
        # Few that each see something: of more, those that see nothing drown them in the sum.
        stages.append(
            StageSpec(
                kind="detector",
                name="features",
                plugin="safety-net",
                config={"rows": max(10, teaching.rows)},
            )
        )
    elif teaching is not None:
        stages.append(
            StageSpec(
                kind="detector",
                name="pixels",
                plugin="residual-cnn",
                config={"epochs": teaching.epochs, "batch": 16},
            )
        )
    stages.append(StageSpec(kind="detector", name="view-consistency", plugin="view-consistency"))
    return GuardSpec(stages=tuple(stages))
