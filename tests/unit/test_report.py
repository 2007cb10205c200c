"""The evaluation report, from figures that are made up."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from jinja2 import UndefinedError

from firewall.attack.suite import Entry
from firewall.evaluation.report import render
from firewall.evaluation.run import Evaluated

HOSTILE = "<script>alert('1')</script>\" onload=\"alert(2)"
ROWS = 3


def evaluated(text: str) -> Evaluated:
    """An evaluation in which every free text is this one."""
    share = {"value": 0.5, "interval": [0.25, 0.75]}
    attack = {
        "name": text, "knowledge": "oblivious", "bounded": True, "fooled_bare_rate": 1.0,
        "loss": None,
        "success_rate": 0.1, "success_interval": [0, 0.3], "detected_rate": 0.9, "auroc": 0.99,
        "robust_accuracy": 0.875, "queries": None, "median_linf": 0.1, "median_l2": 1.0,
        "seconds": 1.0,
    }  # fmt: skip
    checks = dict.fromkeys(
        ("noise_fools", "large_radius_fools", "four_times_the_steps_fools", "five_restarts_fools",
         "vanished_gradients"), 0.0,
    )  # fmt: skip
    result: dict[str, Any] = {
        "target": {"name": text, "guarded": False, "digest": "0" * 64},
        "n": ROWS,
        "warnings": [text],
        "threat_model": {"norm": "linf", "radius": 0.1, "suite": text},
        "effort": {"steps": 5, "queries": 20, "draws": 16},
        "seed": 0,
        "clean": dict.fromkeys(("accuracy", "accepted_and_correct", "false_positive_rate"), share)
        | {"baseline": 0.5, "by_class": [{"class": 1, "rows": 3, "accuracy": 0.5}]},
        "worst_case": {
            "robust_accuracy": 0.4321, "interval": [0.3, 0.5], "per_example": [True, False, False],
        },
        "attacks": [attack],
        "curve": {"points": [{"radius": 0.1, "bare_robust_accuracy": 0.5}], "rows": ROWS},
        "confusion": [{"from": 0, "to": 1, "count": 2}],
        "checks": checks | {"rows": ROWS, "random": False},
        "environment": {"command": ["firewall", text], "machine": {"cpu": text}},
    }  # fmt: skip
    pixels = base64.b64encode(bytes(64)).decode()
    rows = {
        "accepted": np.array([True, True, True]), "right": np.array([True, False, True]),
        "answered": np.array([0, 1, 1]), "picture": [pixels, "", pixels],
    }  # fmt: skip
    loss = np.zeros((ROWS, 5))
    return Evaluated(
        result,
        SimpleNamespace(labels=(text, text), classes=2),  # type: ignore[arg-type]
        np.zeros((ROWS, 1, 8, 8), np.float32),
        np.zeros(ROWS, np.int64),
        None,
        [Entry(text, "oblivious", lambda *_: pytest.fail("nothing is attacked"))],
        {"accepted": np.array([True, True, False]), "right": np.array([True, True, True])},
        {text: rows},
        {"loss": {"cross_entropy": loss, "margin": loss}},
    )


class Page(HTMLParser):
    """Elements, attribute names and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_a_report_shows_hostile_names_as_text() -> None:
    hostile, harmless = Page(render(evaluated(HOSTILE))), Page(render(evaluated("harmless")))
    assert "script" not in hostile.elements
    assert hostile.elements == harmless.elements
    assert hostile.attributes == harmless.attributes
    # Shown, not dropped: headline, warning, attack, both classes.
    assert sum(HOSTILE in text for text in hostile.text) >= 5


def test_a_report_names_the_outcome_of_each_image() -> None:
    text = "\n".join(Page(render(evaluated("an attack"))).text)
    assert "43.2 %" in text
    for outcome in ("stands", "broken by 1: an attack", "refused when clean"):
        assert outcome in text


def test_a_report_without_a_figure_fails_instead_of_leaving_a_gap() -> None:
    done = evaluated("name")
    del done.result["worst_case"]["interval"]
    with pytest.raises(UndefinedError, match="interval"):
        render(done)


def test_labels_of_every_script_are_drawn_without_a_warning() -> None:
    """A character that no font has is a question mark in the picture; the page has it as text."""
    report = render(evaluated("\N{CJK UNIFIED IDEOGRAPH-732B} \N{CAT FACE} cat"))
    assert "\N{CJK UNIFIED IDEOGRAPH-732B} \N{CAT FACE} cat" in report
