"""`report.html`: one file, readable in print, the doubts about it first."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from firewall.attack.suite import Entry
from firewall.evaluation import plots
from firewall.evaluation.run import Evaluated, write

#: Classes up to which a confusion is drawn as a square.
_SQUARE = 20
#: Rows of the worst-case table.
_WORST = 100
#: Side to which pictures are thinned out.
_PIXELS = 112
#: Attacks whose forgeries are drawn.
_GALLERIES = 6

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #111; background: #fff }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-size: 13px; margin: .6rem 0; font-variant-numeric:
  tabular-nums }
th, td { text-align: right; padding: .2rem .6rem; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
.flag { border-left: 5px solid #D55E00; background: #fdf1ea; padding: .5rem .9rem; margin: .5rem 0 }
.good { border-left: 5px solid #009E73; padding: .5rem .9rem }
.row { display: flex; flex-wrap: wrap; gap: 1rem } .row figure { margin: 0 }
img { max-width: 100% } figcaption { font-size: 12px; color: #555 }
pre { background: #f5f5f5; padding: .6rem; white-space: pre-wrap; font-size: 12px }
.big { font-size: 1.5rem } td.no { color: #B2182B; font-weight: 600 }
@media print { body { max-width: none; margin: 0 } h2 { break-after: avoid } }
"""


def write_report(done: Evaluated, path: Path) -> None:
    """Render an evaluation into one HTML file."""
    write(path, render(done))


def render(done: Evaluated) -> str:
    """The report as text."""
    result = done.result
    model, worst = result["threat_model"], result["worst_case"]
    guarded = result["target"]["guarded"]
    parts = [
        f"<h1>Evaluation of {_text(result['target']['name'])}</h1>",
        *_warnings(result["warnings"]),
        f"<p>{result['n']} images, {model['norm']} radius {model['radius']:.4g}, suite "
        f"{_text(model['suite'])}"
        + (
            f", guard at a promised {_percent(result['policy']['false_positive_rate'])} of false "
            "positives"
            if guarded
            else ", no guard"
        )
        + ".</p>",
        f'<p class="big">Robust accuracy, worst case over all attacks: '
        f"<b>{_percent(worst['robust_accuracy'])}</b> ({_interval(worst['interval'])})</p>",
        "<p>The share of images that are accepted and right when clean, and for which no attack "
        "within the radius made an input that is accepted and wrong."
        + (
            " The classifier alone: "
            f"{_percent(worst['bare_robust_accuracy'])} ({_interval(worst['bare_interval'])})."
            if guarded
            else ""
        )
        + "</p>",
        "<h2>Clean images</h2>",
        _table(
            ("", "measured", "95 %"),
            [
                (name, _percent(result["clean"][key]["value"]),
                 _interval(result["clean"][key]["interval"]))
                for name, key in (
                    ("accuracy of the classifier alone", "accuracy"),
                    ("accepted and right", "accepted_and_correct"),
                    ("false-positive rate", "false_positive_rate"),
                )
            ],
        ),
        *_certificates(result.get("certified")),
        "<h2>Attacks</h2>",
        _attacks(result["attacks"], guarded),
        "<h2>Robust accuracy against the radius</h2>",
        _picture(
            plots.curve(result["curve"]["points"], guarded, model["norm"]),
            f"The first {result['curve']['rows']} images, APGD with cross-entropy and DLR"
            + (" and the adaptive attack past the cheap tier." if guarded else "."),
        ),
    ]  # fmt: skip
    if guarded:
        parts += ["<h2>Receiver operating characteristics</h2>", _rocs(done)]
        parts += [
            "<h2>What each stage is worth</h2>",
            "<p>The share of images with a forgery that gets through, for the same forgeries and "
            "guards that lack a stage, each calibrated for itself. An adaptive attacker would "
            "attack the lesser guard anew and do better.</p>",
            _ablation(result["ablation"]),
        ]
    parts += [
        "<h2>Who was fooled into what</h2>",
        _confusion(done),
        "<h2>Worst case, image by image</h2>",
        _worst(done),
        "<h2>Forgeries</h2>",
        _galleries(done),
        "<h2>Checks behind the warnings</h2>",
        _picture(
            plots.losses(done.probes["loss"]["cross_entropy"], done.probes["loss"]["margin"]),
            "Median and middle half of the images along PGD. A loss that does not move hides "
            "its gradient.",
        ),
        _table(
            ("check on the classifier alone", "value"),
            [
                (name, _value(result["checks"][key]))
                for name, key in (
                    ("images looked at", "rows"),
                    ("noise of this radius fools", "noise_fools"),
                    ("at the largest radius the attack fools", "large_radius_fools"),
                    ("APGD-CE with four times the steps fools", "four_times_the_steps_fools"),
                    ("PGD with five restarts fools", "five_restarts_fools"),
                    ("images without any gradient", "vanished_gradients"),
                    ("answers at random", "random"),
                )
            ],
        ),
        "<h2>How this was made</h2>",
        f"<pre>{_text(_provenance(result))}</pre>",
    ]
    body = "\n".join(parts)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{_text(result['target']['name'])}</title><style>{_STYLE}</style></head>"
        f"<body>\n{body}\n</body></html>\n"
    )


def _certificates(found: dict[str, Any] | None) -> Iterable[str]:
    if found is None:
        return []
    four = found["paranoia_4"]
    return [
        "<h2>Certificates</h2>",
        f"<p>Interval bounds at radius {found['radius']:.4g}, and under paranoia 4, which accepts "
        f"only what is certified at {four['certified_radius']:.4g}: then what is accepted and "
        "right when clean is proven to stand. "
        f"{found['violations']} violations in {found['tries']} tries of the attacks below.</p>",
        _table(
            ("", "measured", "95 %"),
            [
                (name, _percent(one["value"]), _interval(one["interval"]))
                for name, one in (
                    ("certified and right", found["accuracy"]),
                    ("paranoia 4: accepted, right and proven", four["accepted_and_correct"]),
                    ("paranoia 4: clean images refused", four["refused"]),
                )
            ],
        ),
    ]


def _warnings(raised: list[str]) -> Iterable[str]:
    if not raised:
        return ['<p class="good">No warning was raised.</p>']
    return [f'<p class="flag"><b>Warning.</b> {_text(one)}.</p>' for one in raised]


def _attacks(attacks: list[dict[str, Any]], guarded: bool) -> str:
    head = ["attack", "knows", "fools the classifier alone"]
    if guarded:
        head += ["accepted and wrong", "95 %", "refused", "AUROC"]
    head += ["robust accuracy", "queries", "median l∞", "median l2", "seconds"]
    rows = []
    for one in attacks:
        row = [
            one["name"] + ("" if one["bounded"] else " (no radius)"),
            one["knowledge"],
            _percent(one["fooled_bare_rate"]),
        ]
        if guarded:
            row += [
                _percent(one["success_rate"]),
                _interval(one["success_interval"]),
                _percent(one["detected_rate"]),
                f"{one['auroc']:.3f}",
            ]
        row += [
            _percent(one["robust_accuracy"]),
            "" if one["queries"] is None else f"{one['queries']:.0f}",
            f"{one['median_linf']:.3f}",
            f"{one['median_l2']:.2f}",
            f"{one['seconds']:.0f}",
        ]
        rows.append(row)
    return _table(head, rows) + (
        "<p>Attacks without a radius come as near as they can, and are no part of the worst "
        "case.</p>"
    )


def _rocs(done: Evaluated) -> str:
    assert done.guard is not None
    names = done.guard.calibration.detectors
    pictures = []
    for entry in done.entries:
        if entry.name not in _shown(done.entries):
            continue
        rows = done.found[entry.name]
        clean = {name: done.clean["statistics"][:, n] for n, name in enumerate(names)}
        forged = {name: rows["statistics"][:, n] for n, name in enumerate(names)}
        clean["combined"], forged["combined"] = done.clean["score"], rows["score"]
        pictures.append(_picture(plots.roc(clean, forged, entry.name), ""))
    return f'<div class="row">{"".join(pictures)}</div>'


def _shown(entries: list[Entry]) -> list[str]:
    """Of each kind of attacker the first two, up to a handful."""
    chosen: list[str] = []
    for knowledge in ("adaptive", "oblivious", "white-box", "black-box", "transfer"):
        chosen += [one.name for one in entries if one.knowledge == knowledge][:2]
    return chosen[:_GALLERIES]


def _ablation(lines: list[dict[str, Any]]) -> str:
    if not lines:
        return ""
    attacks = list(lines[0]["through"])
    return _table(
        ["guard", "false positives", *attacks],
        [
            [
                line["guard"],
                _percent(line["false_positive_rate"]),
                *(_percent(line["through"][name]) for name in attacks),
            ]
            for line in lines
        ],
    )


def _confusion(done: Evaluated) -> str:
    pairs = done.result["confusion"]
    if not pairs:
        return "<p>Nobody: no forgery got through.</p>"
    labels = done.target.labels
    table = _table(
        ("true class", "answered", "forgeries"),
        [(labels[one["from"]], labels[one["to"]], str(one["count"])) for one in pairs[:20]],
    )
    if done.target.classes > _SQUARE:
        return table
    return (
        f'<div class="row">{_picture(plots.confusion(pairs, done.target.classes), "")}{table}</div>'
    )


def _worst(done: Evaluated) -> str:
    entries = [entry for entry in done.entries if entry.bounded]
    labels = done.target.labels
    rows = []
    for row, stands in enumerate(done.result["worst_case"]["per_example"][:_WORST]):
        by = [
            entry.name
            for entry in entries
            if done.found[entry.name]["accepted"][row] and not done.found[entry.name]["right"][row]
        ]
        if stands:
            said = "stands"
        elif not done.clean["accepted"][row]:
            said = "refused when clean"
        elif not done.clean["right"][row]:
            said = "wrong when clean"
        else:
            said = f"broken by {len(by)}: " + ", ".join(by)
        rows.append((str(row), labels[int(done.y[row])], said))
    more = len(done.y) - len(rows)
    return _table(("image", "class", "worst case"), rows) + (
        f"<p>And {more} more, in evaluation.json.</p>" if more > 0 else ""
    )


def _galleries(done: Evaluated) -> str:
    labels = done.target.labels
    pictures = []
    for name in _shown(done.entries):
        rows = done.found[name]
        kept = [n for n, one in enumerate(rows["picture"]) if one]
        forged = [
            np.frombuffer(base64.b64decode(rows["picture"][n]), np.uint8).reshape(done.x[n].shape)
            for n in kept
        ]
        captions = [
            f"{labels[int(rows['answered'][n])]}, "
            f"{'accepted' if rows['accepted'][n] else 'refused'}"
            for n in kept
        ]
        clean = (done.x[kept] * 255).round().astype(np.uint8)
        drawn = plots.gallery(_small(clean), _small(np.stack(forged)), captions)
        large = done.x.shape[2] > _PIXELS
        pictures.append(_picture(drawn, name, dots=90, photographs=large))
    return f'<div class="row">{"".join(pictures)}</div>'


def _small(pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """At most about so many pixels a side, so that a report stays under a megabyte."""
    every = max(1, pictures.shape[2] // _PIXELS)
    return pictures[:, :, ::every, ::every]


def _provenance(result: dict[str, Any]) -> str:
    lines = [
        f"target {result['target']['digest']}",
        f"seed {result['seed']}, {result['effort']['steps']} steps, "
        f"{result['effort']['queries']} queries, {result['effort']['draws']} draws a gradient",
    ]
    for key, value in result.get("environment", {}).items():
        shown = " ".join(value) if isinstance(value, list) else value
        lines.append(f"{key}: {shown}")
    return "\n".join(lines)


def _picture(figure: Figure, caption: str, dots: int = 90, *, photographs: bool = False) -> str:
    source = plots.embedded(figure, dots, photographs=photographs)
    return (
        f'<figure><img alt="{_text(caption)}" src="{source}">'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    lines = "".join(
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>"


def _text(value: str) -> str:
    return html.escape(value)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _interval(pair: Sequence[float]) -> str:
    return f"{100 * pair[0]:.1f} to {100 * pair[1]:.1f} %"


def _value(value: bool | int | float) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if isinstance(value, int) else _percent(value)
