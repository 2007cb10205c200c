"""The gate between torch and ONNX: what is served must be what was assembled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from firewall.bundle.spec import InputSpec
from firewall.errors import ParityError
from firewall.guard.classifier import Bounded, Classifier
from firewall.guard.compile import example
from firewall.guard.graph import Guard
from firewall.guard.interval import least_lead
from firewall.guard.wire_input import WireInput
from firewall.screening.classifier import Answers, Replay
from firewall.screening.compiled import CompiledGuard
from firewall.screening.scores import Scores
from firewall.screening.split import SplitGuard
from firewall.stages import RAW, Denoiser, Evidence

#: Rows compared: one, few, and a number that is neither a power of two nor what was traced.
BATCHES = (1, 2, 17)
#: Largest deviations: a deep network rounds differently in ONNX, by parts in a million.
RELATIVE = 1e-3
ABSOLUTE = 1e-4


def check_parity(guard: Guard, compiled: CompiledGuard, spec: InputSpec) -> float:
    """Compare on noise and on images without any detail; returns the largest deviation found.

    On plain images features are dead, variances are 0 and logarithms are near their end: what is
    left out of a graph there shows nowhere else.

    Raises:
        ParityError: naming the output or detector, and the rows.

    """
    worst = 0.0
    for wire, rows in parity_batches(spec):
        with torch.no_grad():
            expected = guard(WireInput(spec)(wire))
        found = compiled.both(wire.numpy(), batch=len(wire))
        worst = max(worst, compare(guard, expected, found, rows))
    if isinstance(guard.classifier, Bounded):
        for count in BATCHES:
            worst = max(worst, _check_leads(guard.classifier, compiled, spec, count))
    return worst


def check_split(
    guard: Guard,
    served: SplitGuard,
    spec: InputSpec,
    scores: Scores,
    features: Mapping[str, tuple[int, ...]],
) -> None:
    """Compare the graphs around a classifier with torch, around answers that are drawn.

    Args:
        guard: whose stages the graphs are of.
        served: the graphs.
        spec: what clients send.
        scores: how the classifier answers.
        features: shape of one row's features, by tap.

    Raises:
        ParityError: they differ, or a result depends on the rows beside it.

    """
    views = len(guard.denoisers) if served.has_expensive else 0
    for wire, names in parity_batches(spec):
        count = len(wire)
        draws = torch.Generator().manual_seed(count)
        said = torch.randn((views + 1) * count, scores.classes, generator=draws)
        answers = scores.answers(torch.log_softmax(said, dim=1).numpy())
        tapped = {
            tap: torch.rand((views + 1) * count, *shape, generator=draws)
            for tap, shape in features.items()
        }
        drawn = Answers(answers, {tap: values.numpy() for tap, values in tapped.items()})
        logits = torch.from_numpy(scores.logits(answers)).reshape(views + 1, count, -1)
        raw = {tap: values[:count] for tap, values in tapped.items()}
        with torch.no_grad():
            expected = _around(guard, WireInput(spec)(wire), logits, raw)
        found = served.with_classifier(Replay(drawn)).both(wire.numpy(), batch=count)
        compare(guard, expected, found, names)


def _around(
    guard: Guard, x: Tensor, logits: Tensor, features: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """What `Guard.forward` gives, of logits [V + 1, N, K] that a classifier has answered."""
    cheap = Evidence(raw=x, logits={RAW: logits[0]}, features=features)
    columns = list(guard.cheap_statistics(cheap).values())
    log_probabilities = torch.log_softmax(logits[0], dim=1)
    if len(logits) > 1 or guard.tier("expensive") or guard.ensemble is not None:
        views = guard.views(x)
        by_view = {name: logits[n] for n, name in enumerate([RAW, *views])}
        out = guard.judge(Evidence(x, views, by_view, features), guard.tier("expensive"))
        log_probabilities = out.log_probabilities
        columns += out.statistics.values()
    return log_probabilities, torch.stack(columns, dim=1)


def parity_batches(spec: InputSpec) -> Iterator[tuple[Tensor, list[str]]]:
    """Batches as they come over the wire, and what each of their images is."""
    plain = _plain_images(spec)
    yield WireInput(spec).back(torch.stack(list(plain.values()))), [*plain]
    for count in BATCHES:
        names = [f"row {row} of {count} of noise" for row in range(count)]
        yield example(spec, count, seed=count), names


def _plain_images(spec: InputSpec) -> dict[str, Tensor]:
    """Images [C, H, W] of one colour, by what they are called in errors."""
    shape = (spec.channels, spec.height, spec.width)
    images = {
        name: torch.full(shape, value)
        for name, value in (("a black image", 0.0), ("a grey one", 0.5), ("a white one", 1.0))
    }
    if spec.channels > 1:
        one = torch.zeros(shape)
        one[0] = 1.0
        images["an image of the first channel alone"] = one
    return images


def compare(
    guard: Guard,
    expected: tuple[Tensor, Tensor],
    found: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    rows: Sequence[str],
) -> float:
    """Compare log-probabilities and statistics; returns the largest absolute deviation.

    Args:
        guard: whose detectors are named in errors.
        expected: [N, K] and [N, D] of torch.
        found: the same as served.
        rows: what each of the N images is, for errors.

    Raises:
        ParityError: they differ, or torch's are not finite.

    """
    detectors = [f"detector {name!r}" for name in (*guard.tier("cheap"), *guard.tier("expensive"))]
    outputs = ["log-probabilities"] * expected[0].shape[1]
    worst = 0.0
    for tensor, got, columns in zip(expected, found, (outputs, detectors), strict=True):
        want = tensor.numpy()
        if want.shape != got.shape:
            raise ParityError(f"{columns[0]}: shape {got.shape} in ONNX and {want.shape} in torch")
        for row, column in np.argwhere(~np.isfinite(want)):
            raise ParityError(
                f"{columns[column]}: {want[row, column]} on {rows[row]}; expected a finite value "
                "for every image. Bound the argument of logarithms, roots and quotients by "
                "clamp_min"
            )
        for row, column in np.argwhere(~np.isclose(got, want, rtol=RELATIVE, atol=ABSOLUTE)):
            raise ParityError(
                f"{columns[column]}: {got[row, column]:.6g} in ONNX and {want[row, column]:.6g} in "
                f"torch on {rows[row]}. Bound the argument of logarithms, roots and quotients by "
                "clamp_min, and let nothing depend on the order of equal values"
            )
        worst = max(worst, float(np.abs(want - got).max(initial=0.0)))
    return worst


def check_denoised(
    classifier: Classifier, denoiser: Denoiser, compiled: CompiledGuard, spec: InputSpec
) -> None:
    """The classes by which noisy copies vote, as served against torch's.

    Raises:
        ParityError: naming the batch.

    """
    for rows in BATCHES:
        wire = example(spec, rows, seed=rows)
        with torch.no_grad():
            logits = classifier(denoiser(WireInput(spec)(wire))).logits
        top = logits.topk(2, dim=1).values
        # Rounding may swap what is all but equal.
        clear = (top[:, 0] - top[:, 1] > ABSOLUTE + RELATIVE * top[:, 0].abs()).numpy()
        found = compiled.smoothed(wire.numpy())
        if not (found == logits.argmax(dim=1).numpy())[clear].all():
            raise ParityError(f"smoothing at batch {rows}: another class than torch's")


def check_row_independence(
    guard: Guard,
    run: Callable[[npt.NDArray[np.intp]], tuple[npt.NDArray[Any], npt.NDArray[Any]]],
    count: int,
) -> None:
    """Check that what is served of a row does not depend on the rows beside it.

    Requests of several clients share a batch. A stage that looks across it, such as a normalisation
    by the batch's own mean, would let one client move the verdict on another one's image.

    Args:
        guard: whose detectors are named in errors.
        run: log-probabilities and statistics of some rows, by their numbers, as served.
        count: of rows.

    Raises:
        ParityError: a result is another one alone than among others.

    """
    together = run(np.arange(count))
    detectors = [f"detector {name!r}" for name in (*guard.tier("cheap"), *guard.tier("expensive"))]
    for row in range(count):
        alone = run(np.array([row]))
        for one, all_rows, kind in zip(alone, together, ("output", "statistic"), strict=True):
            differ = ~np.isclose(one[0], all_rows[row], rtol=RELATIVE, atol=ABSOLUTE)
            for (column,) in np.argwhere(differ):
                what = "the ensemble" if kind == "output" else detectors[column]
                raise ParityError(
                    f"{what}: {one[0, column]:.6g} for an image alone and "
                    f"{all_rows[row, column]:.6g} for it among {count - 1} others; expected what "
                    "depends on its own row only"
                )


def _check_leads(classifier: Bounded, compiled: CompiledGuard, spec: InputSpec, rows: int) -> float:
    """Certificates as served against torch's; a graph that lost its slack is above them."""
    wire = example(spec, rows, seed=rows)
    x = WireInput(spec)(wire)
    worst = 0.0
    for radius in (0.0, 0.01, 0.1):
        label, lead = compiled.certify(wire.numpy(), np.full(rows, radius, np.float32))
        with torch.no_grad():
            chosen = torch.from_numpy(label)
            leads = classifier.leads(x, radius, chosen, rounding=True)
            expected = least_lead(leads, chosen).numpy()
            plain = least_lead(classifier.leads(x, radius, chosen), chosen).numpy()
        gap = float(np.abs(lead - expected).max())
        # Nearer to the bound with its slack than to the one without.
        if not (np.abs(lead - expected) <= 0.25 * np.abs(plain - expected) + 1e-4).all():
            raise ParityError(f"certificates at batch {rows}: differ by {gap:.3g} from torch")
        worst = max(worst, gap)
    return worst
