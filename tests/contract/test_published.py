"""What is published is what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.tables import PAGES, TABLES, render
from firewall.train import default_recipe

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_rendered_from_the_results(page: Path) -> None:
    text = page.read_text()
    assert len(re.findall(r"<!-- table: ", text)) == len(TABLES)
    assert render(text) == text, "stale; run python -m benchmarks.tables"


@pytest.mark.parametrize("name", ["default-bundle", "latency"])
def test_results_say_how_they_were_measured_and_are_of_this_recipe(name: str) -> None:
    result = json.loads((ROOT / "benchmarks/results" / name / "result.json").read_text())
    assert result["recipe"] == default_recipe.digest()
    environment = result["environment"]
    assert set(environment) == {"command", "commit", "date", "machine", "versions"}
    assert not environment["commit"].endswith("-dirty"), "measured on uncommitted code"
    assert "/" + "work/" not in json.dumps(result)


def test_every_link_of_the_documentation_leads_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
