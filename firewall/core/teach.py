"""Teaching of the two shipped detectors, from photographs and forgeries of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from firewall.core.forgeries import Pairs
from firewall.core.handling import Pixels, handled, sent
from firewall.evaluation.measure import auroc
from firewall.guard.classifier import Classifier
from firewall.stages import RAW, Detector, Evidence

#: Pairs of a step.
_BATCH = 16
#: Pairs that a classifier looks at together: larger batches are no faster.
_LOOK = 4
#: Side in pixels of the crops of early epochs, which cost a third of whole images.
_CROP = 160


def to_batch(pixels: Pixels) -> Tensor:
    """[N, H, W, 3] uint8 to [N, 3, H, W] in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).float() / 255


def teach_pixels(
    detector: Detector,
    pairs: Pairs,
    *,
    epochs: int,
    whole: int,
    seed: int,
    state: Path,
    progress: Callable[[str], None],
) -> None:
    """Train the pixel detector; interrupted, it goes on after the last whole epoch.

    Each pair gives a step three images: the forgery as it may be sent, the photograph sent in such
    a way, and the photograph handled in some way.

    Args:
        detector: its parameters are trained.
        pairs: to learn from.
        epochs: on crops.
        whole: epochs on whole images after those.
        seed: of every draw.
        state: file of what is done so far; not used where it is of other pairs or settings.
        progress: told after each epoch.

    """
    detector.train().requires_grad_(True)
    network: nn.Module = detector
    total = (epochs + whole) * -(-len(pairs.clean) // _BATCH)
    adam = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-3)
    slower = torch.optim.lr_scheduler.OneCycleLR(adam, 4e-3, total_steps=total, pct_start=0.15)
    done = 0
    made_of = f"{pairs.digest()} {epochs} {whole} {seed}"
    saved = torch.load(state, weights_only=True) if state.exists() else {}
    if saved.get("made_of") == made_of:
        network.load_state_dict(saved["network"])
        adam.load_state_dict(saved["adam"])
        slower.load_state_dict(saved["slower"])
        done = saved["epochs"]
    for epoch in range(done, epochs + whole):
        rng = np.random.default_rng([seed, epoch])
        losses: list[float] = []
        for rows in np.array_split(rng.permutation(len(pairs.clean)), total // (epochs + whole)):
            images, target = _step(pairs, rows, rng, None if epoch >= epochs else _CROP)
            x = to_batch(images).contiguous(memory_format=torch.channels_last)
            score = detector(Evidence(raw=x))
            # Two benign images a forgery: both kinds weigh the same.
            weight = torch.where(target > 0, 1.0, 0.5)
            loss = F.binary_cross_entropy_with_logits(score, target, weight)
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            slower.step()
            losses.append(float(loss.detach()))
        save_state(
            {
                "made_of": made_of,
                "network": network.state_dict(),
                "adam": adam.state_dict(),
                "slower": slower.state_dict(),
                "epochs": epoch + 1,
            },
            state,
        )
        progress(f"epoch {epoch + 1} of {epochs + whole}: loss {np.mean(losses):.4f}")
    detector.eval().requires_grad_(False)


def _step(
    pairs: Pairs, rows: npt.NDArray[np.int64], rng: np.random.Generator, side: int | None
) -> tuple[Pixels, Tensor]:
    part = (slice(None), slice(None))
    if side is not None:
        height, width = pairs.clean.shape[1:3]
        # Whole blocks of JPEG, so that what was saved before lies on the same grid.
        top, left = (8 * int(rng.integers(0, (size - side) // 8 + 1)) for size in (height, width))
        part = (slice(top, top + side), slice(left, left + side))
    forged = [sent(pairs.forged[row][part], rng) for row in rows]
    clean = [sent(pairs.clean[row][part], rng) for row in rows]
    benign = [handled(pairs.clean[row][part], rng) for row in rows]
    target = torch.zeros(3 * len(rows))
    target[: len(rows)] = 1.0
    images = np.stack(forged + clean + benign)
    if rng.random() < 0.5:
        images = images[:, :, ::-1]
    return images, target


def teaching_features(
    features_of: Callable[[Evidence], Tensor],
    classifier: Classifier,
    pairs: Pairs,
    *,
    seed: int,
    progress: Callable[[str], None],
) -> tuple[Tensor, Tensor]:
    """Look at every pair as a classifier sees it: sent twice forged, twice clean, once handled.

    Returns:
        Features [M, F], and [M] targets: 1 for forgeries.

    """
    seen: list[Tensor] = []
    targets: list[Tensor] = []
    rng = np.random.default_rng(seed)
    order = np.arange(len(pairs.clean))
    with torch.no_grad():
        for number, rows in enumerate(np.array_split(order, -(-len(order) // _LOOK))):
            images = [pairs.forged[row] for row in rows]
            images += [sent(pairs.forged[row], rng) for row in rows]
            images += [pairs.clean[row] for row in rows]
            images += [sent(pairs.clean[row], rng) for row in rows]
            images += [handled(pairs.clean[row], rng) for row in rows]
            target = torch.zeros(len(images))
            target[: 2 * len(rows)] = 1.0
            x = to_batch(np.stack(images)).contiguous(memory_format=torch.channels_last)
            logits, features = classifier(x)
            seen.append(features_of(Evidence(raw=x, logits={RAW: logits}, features=features)))
            targets.append(target)
            if number % 200 == 199:
                progress(f"features of {(number + 1) * _LOOK} of {len(order)} pairs")
    return torch.cat(seen), torch.cat(targets)


def detection_by_kind(
    score: Callable[[Pixels], npt.NDArray[np.float64]], pairs: Pairs, seed: int
) -> dict[str, Any]:
    """Share of each kind over the highest per cent of clean scores; forgeries that fool alone.

    Args:
        score: [N, H, W, 3] uint8 to [N].
        pairs: that took no part in teaching.
        seed: of how they are sent.

    """
    rng = np.random.default_rng(seed)
    clean = np.concatenate(
        [score(pairs.clean), score(np.stack([handled(one, rng) for one in pairs.clean]))]
    )
    ways: dict[str, Pixels] = {
        "PNG": pairs.forged,
        "sent": np.stack([sent(one, rng) for one in pairs.forged]),
    }
    limit = float(np.quantile(clean, 0.99))
    figures: dict[str, Any] = {}
    for way, pixels in ways.items():
        scores = score(pixels)
        figures[f"{way}: AUROC"] = auroc(clean, scores[pairs.fooled])
        for kind in np.unique(pairs.kind):
            rows = (pairs.kind == kind) & pairs.fooled
            if rows.any():
                figures[f"{way}: {kind}"] = float((scores[rows] > limit).mean())
    return figures


def batches(pixels: Pixels, size: int = 32) -> Iterator[Pixels]:
    """[N, H, W, 3] in parts of at most so many rows."""
    for start in range(0, len(pixels), size):
        yield pixels[start : start + size]


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write what is done so far, whole or not at all."""
    partial = path.with_suffix(".part")
    torch.save(state, partial)
    partial.rename(path)


def save_weights(module: nn.Module, path: Path, version: str, about: dict[str, Any]) -> None:
    """Write floating tensors of a module, with the version of its architecture."""
    from safetensors.torch import save_file

    tensors = {
        name: value.contiguous()
        for name, value in module.state_dict().items()
        if value.is_floating_point()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        tensors,
        path,
        {"version": version, "about": json.dumps(about, sort_keys=True, allow_nan=False)},
    )
    path.chmod(0o644)
