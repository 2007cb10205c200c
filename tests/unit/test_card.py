from __future__ import annotations

from typing import Any

import pytest
from jinja2 import UndefinedError
from markdown_it import MarkdownIt

from firewall.bundle.store import Bundle
from firewall.screening.calibration import Calibration
from firewall.train.card import render, render_table

HOSTILE = "a | b\n\n# <script>alert(1)</script> [x](javascript:1) `code` **bold** \x1b[2J\\"
MEASURED = {"rate": 0.0123, "interval": [0.01, 0.03], "interval_by_photograph": [0.0, 0.05]}
FIGURES = {
    "photographs": 10,
    "rows": 100,
    "0.01": MEASURED,
    "0.05": MEASURED,
}


def suite(text: str) -> dict[str, Any]:
    """`evaluation.json`, as far as a card shows it."""
    attack = {
        "name": text, "bounded": False, "knowledge": text, "fooled_bare_rate": 1.0,
        "detected_rate": 0.5, "success_rate": 0.5, "success_interval": [0, 1], "auroc": 0.9,
    }  # fmt: skip
    return {
        "n": 10,
        "threat_model": {"norm": "linf", "radius": 8 / 255},
        "policy": {"false_positive_rate": 0.01},
        "effort": {"steps": 5, "queries": 20},
        "warnings": [text],
        "attacks": [attack, attack],
        "worst_case": {
            "robust_accuracy": 0.5, "interval": [0, 1], "bare_robust_accuracy": 0.0,
        },
    }  # fmt: skip


def card(bundle: Bundle, text: str) -> str:
    """A card in which every free text is this one."""
    manifest = bundle.manifest.model_copy(
        update={
            "output": text,
            "input": bundle.manifest.input.model_copy(update={"name": text}),
            "classifier": bundle.manifest.classifier.model_copy(update={"architecture": text}),
            "provenance": bundle.manifest.provenance.model_copy(update={"producer": text}),
        }
    )
    calibration = Calibration.from_json(bundle.files["calibration.json"])
    counts = {key: [1, 2] for key in ("train", "selection", "calibration", "test")}
    data = {"labels": [text, text], "counts": counts, "warnings": [text]}
    return render(manifest, calibration, {"held_out": FIGURES, "suite": suite(text), "data": data})


def read(text: str) -> tuple[list[str], list[str]]:
    """Elements of a page of Markdown in their order, and what it says."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inner = [child for token in tokens for child in (token, *(token.children or ()))]
    return [one.type for one in inner], [one.content for one in inner if one.content]


def test_a_card_shows_hostile_names_as_text(tiny: Bundle) -> None:
    hostile, harmless = card(tiny, HOSTILE), card(tiny, "harmless")
    elements, text = read(hostile)
    expected, _ = read(harmless)
    assert elements == expected
    assert "html_inline" not in elements
    assert any("alert(1)" in one for one in text)
    assert hostile.replace("\n", "").isprintable()


def test_a_card_shows_the_figures_of_its_suite(tiny: Bundle) -> None:
    text = card(tiny, "harmless")
    row = "| harmless (no radius) | harmless | 100.0 % | 50.0 % | 50.0 % | 0.0 to 100.0 % | 0.900 |"
    assert text.count(row) == 2
    assert "linf 8/255" in text
    assert "- **Warning:** harmless." in text


def test_a_card_without_attacks_says_so(tiny: Bundle) -> None:
    calibration = Calibration.from_json(tiny.files["calibration.json"])
    text = render(tiny.manifest, calibration, {"held_out": FIGURES})
    assert "Not measured for this recipe." in text
    assert "| held-out photographs (10 photographs, 100 crops) | 1.0 % | 1.2 % |" in text


def test_a_table_without_a_figure_fails_instead_of_leaving_a_gap() -> None:
    whole = suite("name")
    del whole["worst_case"]["interval"]
    with pytest.raises(UndefinedError, match="interval"):
        render_table("suite", whole)
