"""The pictures of a report: for print, and for eyes that do not tell red from green."""

from __future__ import annotations

import base64
import functools
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import font_manager
from matplotlib.figure import Figure

#: Okabe, Ito 2008: eight colours that everyone can tell apart.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999",
)  # fmt: skip
#: So that lines differ without colour too.
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (5, 5)))

#: Fonts of scripts that matplotlib's own lacks, as systems bring them.
_SCRIPTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK KR", "WenQuanYi Zen Hei",
    "Hiragino Sans", "PingFang SC", "Microsoft YaHei", "Malgun Gothic",
    "Noto Sans Devanagari", "Noto Sans Arabic",
)  # fmt: skip

Doubles = npt.NDArray[np.float64]


def style(number: int) -> dict[str, Any]:
    """Colour and dashes of the n-th line."""
    return {"color": COLOURS[number % 8], "linestyle": DASHES[number % 8], "linewidth": 1.5}


def roc(clean: dict[str, Doubles], forged: dict[str, Doubles], title: str) -> Figure:
    """Refused forgeries against refused clean images, a line for each statistic."""
    figure = Figure(figsize=(4.6, 3.8), layout="constrained")
    axes = figure.subplots()
    for number, (name, values) in enumerate(clean.items()):
        cuts = np.unique(np.concatenate([values, forged[name], [np.inf]]))[::-1]
        false = [(values >= cut).mean() for cut in cuts]
        true = [(forged[name] >= cut).mean() for cut in cuts]
        axes.plot([*false, 1.0], [*true, 1.0], label=name, **style(number))
    axes.plot([0, 1], [0, 1], color="#BBBBBB", linewidth=0.8)
    axes.set(xlabel="clean images refused", ylabel="forgeries refused", title=title)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.legend(frameon=False, fontsize=7)
    return figure


def curve(points: list[dict[str, Any]], guarded: bool, norm: str) -> Figure:
    """Robust accuracy against the radius."""
    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    axes = figure.subplots()
    across = [one["radius"] for one in points]
    if guarded:
        values = [one["robust_accuracy"] for one in points]
        axes.plot(across, values, marker="o", markersize=3, label="whole firewall", **style(0))
    values = [one["bare_robust_accuracy"] for one in points]
    axes.plot(across, values, marker="s", markersize=3, label="classifier alone", **style(1))
    axes.set(xlabel=f"radius, {norm}", ylabel="robust accuracy", ylim=(-0.02, 1.02))
    axes.legend(frameon=False, fontsize=8)
    return figure


def losses(cross_entropy: Doubles, margin: Doubles) -> Figure:
    """Mean loss and margin along the steps of PGD, with the middle half of the rows."""
    figure = Figure(figsize=(6.4, 2.8), layout="constrained")
    for number, (axes, name, values) in enumerate(
        zip(
            figure.subplots(1, 2),
            ("cross-entropy", "margin (over 0: fooled)"),
            (cross_entropy, margin),
            strict=True,
        )
    ):
        steps = np.arange(values.shape[1])
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
        axes.fill_between(steps, low, high, color=COLOURS[number], alpha=0.2, linewidth=0)
        axes.plot(steps, middle, **style(number))
        axes.set(xlabel="step of PGD", ylabel=name)
    return figure


def confusion(pairs: list[dict[str, Any]], classes: int) -> Figure:
    """Counts of who was fooled into what, for few classes."""
    figure = Figure(figsize=(4.2, 3.8), layout="constrained")
    axes = figure.subplots()
    table = np.zeros((classes, classes))
    for pair in pairs:
        table[pair["from"], pair["to"]] = pair["count"]
    image = axes.imshow(table, cmap="cividis")
    figure.colorbar(image, ax=axes, label="forgeries accepted")
    axes.set(xlabel="answered", ylabel="true class")
    ticks = range(0, classes, max(1, classes // 10))
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    return figure


def gallery(
    clean: npt.NDArray[np.uint8], forged: npt.NDArray[np.uint8], captions: list[str]
) -> Figure:
    """Clean, difference and forgery of a few rows.

    Args:
        clean: [M, C, H, W].
        forged: [M, C, H, W].
        captions: one a row.

    """
    rows = len(clean)
    figure = Figure(figsize=(4.2, 1.5 * rows), layout="constrained")
    grid = figure.subplots(rows, 3, squeeze=False)
    for row in range(rows):
        difference = forged[row].astype(np.float64) - clean[row]
        reach = max(1.0, float(np.abs(difference).max()))
        drawn = (difference / reach / 2 + 0.5) * 255
        for place, picture in enumerate((clean[row], drawn.astype(np.uint8), forged[row])):
            axes = grid[row, place]
            axes.imshow(
                picture[0] if len(picture) == 1 else picture[:3].transpose(1, 2, 0),
                cmap="gray",
                vmin=0,
                vmax=255,
            )
            axes.set_xticks([])
            axes.set_yticks([])
        grid[row, 0].set_title("clean", fontsize=6)
        grid[row, 1].set_title(f"difference, of ±{reach:.0f}/255", fontsize=6)
        grid[row, 2].set_title(_drawable(captions[row]), fontsize=6, fontfamily=_fonts())
    return figure


@functools.cache
def _fonts() -> list[str]:
    """Matplotlib's own font, and after it those of other scripts that this machine has."""
    have = {one.name for one in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _SCRIPTS if name in have)]


def _drawable(text: str) -> str:
    """The text, with a question mark for each character that no font here has."""
    fonts = [font_manager.get_font(font_manager.findfont(name)) for name in _fonts()]
    return "".join(
        one if any(font.get_char_index(ord(one)) for font in fonts) else "?" for one in text
    )


def embedded(figure: Figure, dots: int = 100, *, photographs: bool = False) -> str:
    """A picture as a data URL, so that a report is one file.

    Args:
        figure: to be drawn.
        dots: an inch.
        photographs: whether most of it is; they are as good, and far smaller, as JPEG.

    """
    out = io.BytesIO()
    kind = "jpeg" if photographs else "png"
    options = {"quality": 80} if photographs else {"optimize": True}
    figure.savefig(out, format=kind, dpi=dots, pil_kwargs=options)
    return f"data:image/{kind};base64," + base64.b64encode(out.getvalue()).decode()
