"""What a classifier takes and answers, found out and checked on images before anything is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.bundle.spec import InputSpec, Preprocessing, TensorSpec
from firewall.errors import ConfigError
from firewall.screening.preprocess import to_wire
from firewall.sources import check
from firewall.sources.describe import (
    label_count,
    normalisation_of,
    preprocessing,
    read_labels,
    spec_of,
)
from firewall.sources.images import Images, folder_labels, read_images
from firewall.sources.options import PRESETS, SourceOptions
from firewall.sources.source import Source, compare_module, pass_through

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What a guard is made of, found out and checked before anything is fitted.

    Attributes:
        source: the classifier.
        spec: what clients send.
        preprocessing: of encoded images.
        images: by which the guard is made.
        checked: what the classifier says about a sample of them.
        sample: rows of the sample.
        labels: names of the classes.
        truth: [N] classes of the images; None where their folders do not say.
        truth_note: how the folders say it, or why they do not.
        others: further outputs of the classifier, which pass through.

    """

    source: Source
    spec: InputSpec
    preprocessing: Preprocessing
    images: Images
    checked: check.Checked
    sample: npt.NDArray[np.intp]
    labels: tuple[str, ...]
    truth: npt.NDArray[np.int64] | None
    truth_note: str
    others: tuple[TensorSpec, ...]

    @property
    def kind(self) -> str:
        """`file` or `remote`."""
        return "remote" if self.source.model is None else "file"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Everything that a person should look at."""
        note = (self.truth_note,) if self.truth is None and self.truth_note else ()
        return (
            *self.images.warnings,
            *self.source.hints.warnings,
            *note,
            *self.checked.warnings,
        )

    @property
    def accuracy(self) -> float | None:
        """Share of the sample that is classified rightly; None where the classes are not known."""
        if self.truth is None:
            return None
        return check.accuracy(self.checked.logits, self.truth[self.sample])


def inspect(
    source: Source, options: SourceOptions, paths: list[Path], limit: int, progress: Progress
) -> Plan:
    """Find out what a classifier takes and answers, and check it on images.

    Raises:
        ConfigError: a guard of it would have no meaning, or something has to be said first.

    """
    normalisation = normalisation_of(source.input, options, source.hints)
    described = normalisation or PRESETS["zero-one"]
    spec = spec_of(source.input, source.size, described)
    prepared = preprocessing(source.size, options, source.hints)
    own = options.normalisation is None and options.resize is None and options.fit is None
    if own and source.hints.reference is not None:
        check.check_reference(source.hints.reference, spec, prepared, source.hints.source)
    progress("reading images")
    images = read_images(paths, spec, prepared, limit)
    sample = check.sample_rows(len(images.pixels))
    pixels = images.pixels[sample]
    progress(f"asking the classifier about {len(sample)} of {len(images.pixels)} images")
    classifier = source.open()

    def ask(wire: Any) -> Any:
        return classifier.infer(wire, None, scores_only=True)

    try:
        answers = ask(to_wire(pixels, spec)).scores
        scores = check.read_scores(answers, source.output.name, options, label_count(options))
        labels = read_labels(options, source.hints, scores.classes)
        truth, truth_note = folder_labels(images, labels)
        check.check_rows(ask, to_wire(pixels[: check.ALONE], spec), scores)
        compare_module(source, to_wire(pixels[: check.ALONE], spec), answers)
        checked = check.look(
            ask, pixels, spec, source.size, scores,
            normalised=source.input.datatype != "UINT8",
            truth=None if truth is None else truth[sample],
            labels=labels,
        )  # fmt: skip
    finally:
        classifier.close()
    if normalisation is None:
        raise ConfigError(_unknown(checked))
    others = pass_through(source, to_wire(pixels[:2], spec))
    return Plan(source, spec, prepared, images, checked, sample, labels, truth, truth_note, others)


def _unknown(checked: check.Checked) -> str:
    """What to say where nobody says how images become the input."""
    listed = [("--preset zero-one", checked.confidence[0][1]), *checked.confidence[1:]]
    listed = [one for one in listed if one[0].startswith("--preset")]
    listed.sort(key=lambda one: -one[1])
    said = ", ".join(f"{flag} {value:.0%}" for flag, value in listed)
    return (
        "how images become the classifier's input is not known: the source does not say it. Say "
        "it with --preset, or with --range, --mean, --std and --channel-order. For a start, how "
        f"sure the classifier is of its top class on average: {said}. A description that is "
        "nearly right may look as sure as the right one: ask whoever trained it"
    )
