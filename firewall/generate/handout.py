"""A generated data set that is handed on, with what is known of its privacy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from firewall.errors import ConfigError
from firewall.generate.store import StoredGenerator
from firewall.train.fit_network import Images
from firewall.train.steps import write_json


def write_handout(
    stored: StoredGenerator, made: Images, audited: dict[str, Any], folder: Path
) -> None:
    """Write `images.npz`, `audit.json` and `README.md`.

    Args:
        stored: where the images come from.
        made: the images.
        audited: by `audit`.
        folder: new, or an earlier hand-out.

    Raises:
        ConfigError: it cannot be written.

    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            folder / "images.npz",
            x=made.x.permute(0, 2, 3, 1).contiguous().numpy(),
            y=made.y.numpy(),
            labels=np.array(stored.labels),
        )
        write_json(folder / "audit.json", audited | {"differential_privacy": stored.spent})
        (folder / "README.md").write_text(
            "\n".join(_lines(stored, made, audited)) + "\n", encoding="utf-8"
        )
    except OSError as error:
        raise ConfigError(f"--out: {folder} cannot be written: {error.strerror}") from error


def _lines(stored: StoredGenerator, made: Images, audited: dict[str, Any]) -> list[str]:
    private = audited["privacy"]
    attack = ", ".join(
        f"{share:.2%} of training images at {float(rate):.1%} wrong accusations"
        for rate, share in private["true_positives_at"].items()
    )
    floor = audited["floor"]["frechet_distance"]
    return [
        "# Generated images",
        "",
        f"{len(made)} images of {len(stored.labels)} classes, drawn by a conditional GAN. "
        "`images.npz` holds `x` [N, H, W, C] uint8, `y` [N] and `labels`.",
        "",
        "## What they tell of the images that they were learnt from",
        "",
        f"- An attacker who asks how near the nearest generated image is finds out {attack} "
        f"(a guess finds as many as it accuses); AUROC {private['membership_auroc']:.3f}.",
        f"- {private['copies']:.2%} lie nearer to a training image than 1 % of other real images "
        "do.",
        f"- {_promise(stored.spent)}",
        "",
        "## What they are good for",
        "",
        f"Fréchet distance {audited['frechet_distance']:.3g} (real training images: {floor:.3g}), "
        f"precision {audited['precision']:.2f}, recall {audited['recall']:.2f}, by extractor "
        f"`{audited['extractor'][:12]}`.",
        *_trained(audited.get("trained_on")),
    ]


def _promise(spent: dict[str, float] | None) -> str:
    if spent is None:
        return (
            "**Nothing is promised**: the training was not differentially private, and an attack "
            "that finds nothing is no proof."
        )
    return (
        f"Differential privacy for each training image: epsilon {spent['epsilon']:.2f} at delta "
        f"{spent['delta']:g}, by DP-SGD on the discriminator. Figures of this audit are measured "
        "on the training images and are not covered."
    )


def _trained(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    right = found["accuracy"]
    return [
        "",
        f"A classifier that was trained on them is right about {right['generated']:.1%} of real "
        f"test images, one trained on as many real ones about {right['real']:.1%}. The two agree "
        f"on {found['agree']:.1%}; two trainings on real images with different seeds agree on "
        f"{found['seed_to_seed']:.1%}.",
    ]
