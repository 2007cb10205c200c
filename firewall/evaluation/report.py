"""`report.html`: an evaluation as one printable file, with warnings before any figure."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined

from firewall.attack.suite import Entry
from firewall.evaluation import plots
from firewall.evaluation.formats import interval, percent
from firewall.evaluation.run import Evaluated, write

#: Largest number of classes for which the confusion matrix is drawn.
_MATRIX_CLASSES = 20
#: Rows of the worst-case table.
_LISTED_IMAGES = 100
#: Shorter side in pixels above which images are subsampled: a report stays under a megabyte.
_PIXELS = 112
#: Attacks of which receiver operating characteristics and forgeries are drawn.
_DRAWN_ATTACKS = 6
_DOTS_PER_INCH = 90


def write_report(done: Evaluated, path: Path) -> None:
    """Write an evaluation as one HTML file."""
    write(path, render(done))


def render(done: Evaluated) -> str:
    """Render an evaluation as HTML."""
    environment = Environment(
        loader=PackageLoader("firewall.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": percent, "interval": interval}
    result, loss = done.result, done.probes.get("loss")
    guarded = result["target"]["guarded"]
    points, norm = result["curve"]["points"], result["threat_model"]["norm"]
    drawn = _drawn(done.entries)
    return environment.get_template("report.html.jinja").render(
        result=result,
        labels=done.target.labels,
        outcomes=_outcomes(done),
        curve=plots.embedded(plots.curve(points, guarded, norm), _DOTS_PER_INCH)
        if points
        else None,
        losses=None
        if loss is None
        else plots.embedded(plots.losses(loss["cross_entropy"], loss["margin"]), _DOTS_PER_INCH),
        rocs=[_roc(done, name) for name in drawn] if done.guard is not None else [],
        confusion=_confusion(done),
        galleries={name: _gallery(done, name) for name in drawn},
    )


def _drawn(entries: list[Entry]) -> list[str]:
    """Choose the first two attacks of each kind of attacker, up to a handful."""
    chosen: list[str] = []
    for knowledge in ("adaptive", "oblivious", "white-box", "black-box", "transfer"):
        chosen += [entry.name for entry in entries if entry.knowledge == knowledge][:2]
    return chosen[:_DRAWN_ATTACKS]


def _roc(done: Evaluated, name: str) -> str:
    assert done.guard is not None
    forgeries = done.found[name]
    clean, forged = {}, {}
    for column, detector in enumerate(done.guard.calibration.detectors):
        clean[detector] = done.clean["statistics"][:, column]
        forged[detector] = forgeries["statistics"][:, column]
    clean["combined"], forged["combined"] = done.clean["score"], forgeries["score"]
    return plots.embedded(plots.roc(clean, forged, name), _DOTS_PER_INCH)


def _confusion(done: Evaluated) -> str | None:
    pairs, classes = done.result["confusion"], done.target.classes
    if not pairs or classes > _MATRIX_CLASSES:
        return None
    return plots.embedded(plots.confusion(pairs, classes), _DOTS_PER_INCH)


def _outcomes(done: Evaluated) -> list[tuple[str, str, str]]:
    """Describe the first images: number, class, and what became of them under all attacks."""
    tables = {entry.name: done.found[entry.name] for entry in done.entries if entry.bounded}
    rows = []
    for row, stands in enumerate(done.result["worst_case"]["per_example"][:_LISTED_IMAGES]):
        if stands:
            outcome = "stands"
        elif not done.clean["accepted"][row]:
            outcome = "refused when clean"
        elif not done.clean["right"][row]:
            outcome = "wrong when clean"
        else:
            attacks = [
                name
                for name, table in tables.items()
                if table["accepted"][row] and not table["right"][row]
            ]
            outcome = f"broken by {len(attacks)}: " + ", ".join(attacks)
        rows.append((str(row), done.target.labels[int(done.y[row])], outcome))
    return rows


def _gallery(done: Evaluated, name: str) -> str:
    forgeries = done.found[name]
    kept = [row for row, picture in enumerate(forgeries["picture"]) if picture]
    clean = (done.x[kept] * 255).round().astype(np.uint8)
    pixels = b"".join(base64.b64decode(forgeries["picture"][row]) for row in kept)
    forged = np.frombuffer(pixels, np.uint8).reshape(clean.shape)
    captions = [
        f"{done.target.labels[int(forgeries['answered'][row])]}, "
        f"{'accepted' if forgeries['accepted'][row] else 'refused'}"
        for row in kept
    ]
    figure = plots.gallery(_subsampled(clean), _subsampled(forged), captions)
    return plots.embedded(figure, _DOTS_PER_INCH, photographs=done.x.shape[2] > _PIXELS)


def _subsampled(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    step = max(1, images.shape[2] // _PIXELS)
    return images[:, :, ::step, ::step]
