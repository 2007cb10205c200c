"""The stages of a guard for a classifier that somebody already has, and how they are taught."""

from __future__ import annotations

from dataclasses import dataclass

from firewall.bundle.spec import GuardSpec, InputSpec, StageSpec

#: Share of clean rows that go on to the view: of a classifier here, and of one elsewhere, whose
#: load it is.
ESCALATION = {"file": 0.12, "remote": 0.08}
#: Pixels a side from which on an image is judged as a photograph: the shipped detector has learnt
#: from 160 and more.
_PHOTOGRAPH = 96


@dataclass(frozen=True)
class Teaching:
    """How much learning stages may cost.

    Attributes:
        rows: images of the lesson.
        epochs: of a pixel network that is taught here.
        examples: forgeries that are made of them.

    """

    rows: int
    epochs: int
    examples: int


def default_stages(taps: tuple[str, ...], teaching: Teaching | None, spec: InputSpec) -> GuardSpec:
    """Choose stages by what there is to see: the shipped ones, and what learns of this classifier.

    Args:
        taps: features that the classifier gives.
        teaching: how stages learn; None where there are no gradients to learn from.
        spec: of the input.

    """
    stages = [
        StageSpec(kind="denoiser", name="median", plugin="median"),
    ]
    if min(spec.height, spec.width) >= _PHOTOGRAPH and spec.channels in (1, 3):
        stages.append(StageSpec(kind="detector", name="pixels", plugin="core-pixels"))
    elif teaching is not None:
        config = {"epochs": teaching.epochs, "batch": 16}
        stages.append(
            StageSpec(kind="detector", name="pixels", plugin="residual-cnn", config=config)
        )
    else:
        stages.append(StageSpec(kind="detector", name="noise-floor", plugin="noise-floor"))
    if teaching is not None and taps:
        read = {"taps": list(taps)}
        stages.append(
            StageSpec(kind="detector", name="features", plugin="core-features", config=read)
        )
    squeeze = {"views": ["median"], "distance": "symmetric-kl"}
    stages.append(
        StageSpec(kind="detector", name="squeezing", plugin="feature-squeezing", config=squeeze)
    )
    return GuardSpec(stages=tuple(stages))
