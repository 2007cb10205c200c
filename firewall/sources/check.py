"""Whether a classifier is fed rightly, and answers what a guard needs, by what it says of images.

A wrong description of a classifier makes a guard that is worth nothing and looks like any other.
So what was said is compared with what comes out: errors where a guard would have no meaning,
warnings with the flag that would mend it elsewhere.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from firewall.bundle.spec import InputSpec, Preprocessing, ScoreSpec
from firewall.decoding.decode import Target, decode_to
from firewall.errors import ConfigError, FirewallError
from firewall.protocol.tensors import TensorInfo
from firewall.screening.classifier import Answers, Array
from firewall.screening.preprocess import to_wire
from firewall.screening.scores import Scores, log_softmax
from firewall.sources.describe import Size, spec_of
from firewall.sources.options import (
    PRESETS,
    ChannelOrder,
    Normalisation,
    Reference,
    SourceOptions,
    reordered,
)

#: Images on which answers are looked at, at most.
SAMPLE = 64
#: Share of images for which one class is named from which on a warning says so.
_NEARLY_ALL = 0.95
#: By how much another description must be ahead to be worth a question: in the share of images that
#: are classified rightly, or else in the mean probability of the top class.
_MORE_RIGHT, _SURER = 0.1, 0.05
#: Images that are asked alone as well as together.
ALONE = 8
#: Largest difference of a log-probability between two askings of a row.
_APART = 0.05
#: Largest mean difference of two resamplings of a smooth image, in parts of its deviation.
_RESAMPLED = 0.08
#: Names of outputs that are features and no scores.
_FEATURE_WORDS = ("embed", "feature", "hidden", "pooler", "pooled")
#: A sum of probabilities may be off by this.
_ROUNDING = 2e-3

Ask = Callable[[Array], Answers]


@dataclass(frozen=True)
class Checked:
    """What was found.

    Attributes:
        scores: how the class scores are read.
        logits: [N, K] of the sample.
        warnings: sentences.
        confidence: mean probability of the top class by preset, the one in use first.

    """

    scores: Scores
    logits: npt.NDArray[np.float32]
    warnings: tuple[str, ...]
    confidence: tuple[tuple[str, float], ...] = ()


def read_scores(answers: Array, name: str, options: SourceOptions, labels: int | None) -> Scores:
    """Find out how class scores are to be read, and refuse what are none.

    Args:
        answers: [N, ...] of clean images.
        name: of the output.
        options: of the owner.
        labels: how many class names there are; None where there are none.

    Raises:
        ConfigError: the output is no row of class scores, or not what was said of it.

    """
    where = f"output {name!r}"
    if answers.dtype.kind != "f":
        raise ConfigError(
            f"{where} is {answers.dtype.name}, an index or a count and no class scores; name "
            "another output with --output, or export the model without its argmax"
        )
    shape = answers.shape[1:]
    if len(answers) == 0 or sum(size != 1 for size in shape) > 1:
        raise ConfigError(
            f"{where} is {list(shape)} for an image; expected one value a class. Name another "
            "output with --output"
        )
    values = answers.reshape(len(answers), -1).astype(np.float64)
    if not np.isfinite(values).all():
        raise ConfigError(
            f"{where} is not finite for clean images; is the input in the range that it expects? "
            "See --preset and --range"
        )
    count = values.shape[1]
    if len(values) > 1 and np.ptp(values, axis=0).max() <= 1e-6 * max(1.0, np.abs(values).max()):
        raise ConfigError(
            f"{where} is the same for all {len(values)} images; is the input in the range that it "
            "expects? See --preset and --range"
        )
    if any(word in name.lower() for word in _FEATURE_WORDS) and labels != count:
        raise ConfigError(
            f"{where} looks like features and no class scores, by its name; name another with "
            "--output, or say what its classes are with --labels"
        )
    norms = np.linalg.norm(values, axis=1)
    if count > 2 and values.min() < 0 and np.allclose(norms, 1.0, atol=1e-3):
        raise ConfigError(
            f"{where} has length 1 for every image: an embedding and no class scores. Name "
            "another with --output"
        )
    activation = _activation(values, where, options)
    datatype = {"float16": "FP16", "float32": "FP32", "float64": "FP64"}[answers.dtype.name]
    spec = ScoreSpec.model_validate(
        {"activation": activation, "datatype": datatype, "shape": tuple(shape)}
    )
    return Scores(spec, tuple(shape), 2 if count == 1 else count)


def _activation(values: npt.NDArray[np.float64], where: str, options: SourceOptions) -> str:
    count = values.shape[1]
    inside = bool((values >= -1e-6).all() and (values <= 1 + _ROUNDING).all())
    sums = bool(inside and count > 1 and np.allclose(values.sum(axis=1), 1.0, atol=_ROUNDING))
    told = options.activation
    whole = bool((values == np.round(values)).all())
    if count == 1 and whole:
        raise ConfigError(
            f"{where} is a whole number for every image, an index or a decision and no class "
            "scores; name another output with --output, or export the model without its argmax"
        )
    if sums:
        if told not in (None, "softmax"):
            raise ConfigError(
                f"--activation: {told}; but {where} sums to 1 for every image: they are "
                "probabilities. Leave the flag out, or say --activation softmax"
            )
        return "softmax"
    if told == "softmax":
        raise ConfigError(
            f"--activation: softmax; but {where} does not sum to 1 (from "
            f"{values.sum(axis=1).min():.3g} to {values.sum(axis=1).max():.3g})"
        )
    if told == "sigmoid" and not inside:
        raise ConfigError(f"--activation: sigmoid; but {where} leaves [0, 1]")
    if told == "logits" and not (inside and count == 1):
        return "logits"
    if told is None and not inside:
        return "logits"
    if count == 1:
        # Within [0, 1] for every image: a probability, unless its owner says otherwise.
        return told or "sigmoid"
    several = float((values > 0.5).sum(axis=1).mean())
    if told == "sigmoid" and several <= 1.1:
        return "sigmoid"
    raise ConfigError(
        f"{where} lies in [0, 1] and does not sum to 1, with {several:.1f} of {count} values over "
        "0.5 an image: probabilities of labels that may apply together. A guard is for "
        "classifiers of which one class applies"
        + ("" if told == "sigmoid" else "; if that is so here, say --activation sigmoid")
    )


def look(
    ask: Ask,
    pixels: npt.NDArray[np.uint8],
    spec: InputSpec,
    size: Size,
    scores: Scores,
    *,
    normalised: bool,
    labels: Sequence[str],
    truth: npt.NDArray[np.int64] | None = None,
) -> Checked:
    """Look at what a classifier says about images, under its description and under others.

    Args:
        ask: the classifier, on rows of the wire.
        pixels: [N, H, W, C] images.
        spec: as described.
        size: of the input.
        scores: how the answers are read.
        normalised: whether other normalisations make sense: not for UINT8.
        labels: names of the classes.
        truth: [N] classes of the images, where they are known.

    """
    logits = scores.logits(ask(to_wire(pixels, spec)).scores)
    warnings: list[str] = []
    top = logits.argmax(axis=1)
    names, counts = np.unique(top, return_counts=True)
    share = counts.max() / len(top)
    if len(top) >= 10 and share >= _NEARLY_ALL:
        warnings.append(
            f"class {labels[names[counts.argmax()]]!r} is named for {share:.0%} of {len(top)} "
            "images; expected only where nearly all of them are of that class"
        )
    found: list[tuple[str, float]] = [("as described", float(_confidences(logits).mean()))]
    better: list[tuple[float, str]] = []
    if normalised:
        for name, normalisation in alternatives(spec, size):
            try:
                other_spec = _with(spec, size, normalisation)
                other = scores.logits(ask(to_wire(pixels, other_spec)).scores)
            except FirewallError:
                continue
            found.append((name, float(_confidences(other).mean())))
            ahead = _ahead(logits, other, truth)
            if ahead > 0:
                better.append((ahead, _better(name, spec, other_spec, logits, other, truth)))
    if better:
        warnings.append(max(better)[1])
    return Checked(scores, logits, tuple(warnings), tuple(found))


def check_rows(ask: Ask, wire: Array, scores: Scores) -> None:
    """Check that a row is answered alike alone, among others, and when it is asked again.

    Requests of several clients share a batch. A classifier that looks across it, such as one that
    normalises by the batch's own mean, would let one client move the answer to another.

    Args:
        ask: the classifier.
        wire: [N, ...] rows.
        scores: how answers are read.

    Raises:
        ConfigError: the answers differ.

    """
    together, again = (scores.logits(ask(wire).scores) for _ in range(2))
    alone = np.concatenate([scores.logits(ask(wire[n : n + 1]).scores) for n in range(len(wire))])
    for other, what in (
        (again, "when it is asked the same again: it is random. Export it in evaluation mode"),
        (
            alone,
            "for an image alone and for it among others: its rows depend on one another, as with "
            "a normalisation over the batch, or on how many there are",
        ),
    ):
        apart = np.abs(log_softmax(other) - log_softmax(together))
        # Quantised graphs step; what is likely is compared.
        likely = np.exp(log_softmax(together)) > 1e-3
        if apart[likely].max(initial=0.0) > _APART:
            raise ConfigError(f"the classifier answers otherwise {what}")


def check_reference(
    reference: Reference, spec: InputSpec, preprocessing: Preprocessing, source: str
) -> None:
    """Compare what this program makes of an image with what the source's own preprocessing does.

    Args:
        reference: the source's own.
        spec: of the input.
        preprocessing: of encoded images.
        source: where the description comes from, for errors.

    Raises:
        ConfigError: they differ by more than resampling does.

    """
    image = _test_image()
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    pixels = decode_to(buffer.getvalue(), Target.of(spec, preprocessing), field="image")
    own = to_wire(pixels[None], spec)[0].astype(np.float32)
    theirs = reference(image)
    what = f"the description read from {source} is not what the source's own processor does"
    mend = (
        "; say it with --preset, or --range, --mean, --std and --channel-order, and with --resize "
        "or --squash"
    )
    if theirs.shape != own.shape:
        raise ConfigError(
            f"{what}: it makes {list(theirs.shape)} of an image, expected {list(own.shape)}{mend}"
        )
    apart = float(np.abs(theirs - own).mean() / max(1e-6, float(theirs.std())))
    if apart > _RESAMPLED:
        raise ConfigError(f"{what}: pixels differ by {apart:.0%} of their spread on average{mend}")


def _test_image() -> npt.NDArray[np.uint8]:
    """[300, 400, 3]: smooth, another colour everywhere, and not square."""
    y, x = np.mgrid[0:300, 0:400]
    waves = [np.sin(x / 37), np.sin(y / 29 + 1), np.cos((x + y) / 53)]
    image: npt.NDArray[np.uint8] = (127.5 + 120 * np.stack(waves, axis=2)).astype(np.uint8)
    image[..., 2] //= 2
    return image


def alternatives(spec: InputSpec, size: Size) -> list[tuple[str, Normalisation]]:
    """Presets other than the description, and the other order of its channels."""
    found: list[tuple[str, Normalisation]] = []
    for name, preset in PRESETS.items():
        if size.channels != 3 and preset.mean is not None:
            continue
        if _with(spec, size, preset) != spec:
            found.append((f"--preset {name}", preset))
    if size.channels == 3:
        order: ChannelOrder = "RGB" if spec.channel_order == "BGR" else "BGR"
        own = _normalisation(spec)
        found.append((f"--channel-order {order.lower()}", reordered(own, order)))
    return found


def sample_rows(count: int) -> npt.NDArray[np.intp]:
    """Rows of the images that are looked at, spread over all of them."""
    return np.unique(np.linspace(0, count - 1, min(count, SAMPLE)).round().astype(np.intp))


def accuracy(logits: npt.NDArray[np.float32], truth: npt.NDArray[np.int64]) -> float:
    """Share of rows of which the top class is the right one."""
    return float((logits.argmax(axis=1) == truth).mean())


def top_classes(
    logits: npt.NDArray[np.float32], labels: Sequence[str], count: int = 3
) -> list[list[tuple[str, float]]]:
    """The likeliest classes of each row, with their probabilities."""
    probabilities = np.exp(log_softmax(logits))
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :count]
    return [
        [(labels[index], float(row[index])) for index in places]
        for row, places in zip(probabilities, order, strict=True)
    ]


def _ahead(
    own: npt.NDArray[np.float32],
    other: npt.NDArray[np.float32],
    truth: npt.NDArray[np.int64] | None,
) -> float:
    """How far another description serves the classifier better; 0 where it is not clear."""
    if truth is not None:
        gained = accuracy(other, truth) - accuracy(own, truth)
        return gained if gained > _MORE_RIGHT else 0.0
    ahead = _confidences(other) - _confidences(own)
    error = float(ahead.std()) / max(1.0, len(ahead) ** 0.5)
    gained = float(ahead.mean())
    return gained if len(ahead) >= 10 and gained > max(_SURER, 3 * error) else 0.0


def _better(
    name: str,
    spec: InputSpec,
    other_spec: InputSpec,
    own: npt.NDArray[np.float32],
    other: npt.NDArray[np.float32],
    truth: npt.NDArray[np.int64] | None,
) -> str:
    """A question about another description, which serves the classifier better."""
    asked = "is that what it was trained with?"
    if truth is not None:
        return (
            f"with {name} the classifier is right on {accuracy(other, truth):.0%} of images, as "
            f"described on {accuracy(own, truth):.0%}; {asked}"
        )
    said = (
        f"with {name} the classifier is surer of itself (its top class has "
        f"{_confidences(other).mean():.0%} on average, as described "
        f"{_confidences(own).mean():.0%}); {asked}"
    )
    if _span(other_spec) > 2 * _span(spec):
        said += " A network without normalisation layers is surer of whatever is larger"
    return said


def _span(spec: InputSpec) -> float:
    """How far black and white lie apart on the wire."""
    return spec.high - spec.low if spec.std is None else 1.0 / min(spec.std)


def _confidences(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = np.exp(log_softmax(logits)).max(axis=1).astype(np.float64)
    return np.nan_to_num(found, nan=0.0)


def _with(spec: InputSpec, size: Size, normalisation: Normalisation) -> InputSpec:
    return spec_of(TensorInfo(spec.name, spec.datatype, ()), size, normalisation)


def _normalisation(spec: InputSpec) -> Normalisation:
    """The normalisation of a description, in units where white is 1."""
    if spec.mean is None or spec.std is None:
        return Normalisation(spec.low, spec.high, None, None, spec.channel_order)
    return Normalisation(0.0, 1.0, spec.mean, spec.std, spec.channel_order)
