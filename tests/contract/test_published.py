"""What is published is what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.tables import PAGES, RECIPES, TABLES, render
from firewall.stages.registry import Registry
from firewall.train import default_recipe
from firewall.train.recipe import Recipe, load

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_rendered_from_the_results(page: Path) -> None:
    text = page.read_text()
    assert render(text) == text, "stale; run python -m benchmarks.tables"


def test_every_table_is_on_a_page() -> None:
    text = "".join(page.read_text() for page in PAGES)
    assert sorted(re.findall(r"<!-- table: ([a-z-]+)", text)) == sorted(TABLES)


RESULTS = sorted((ROOT / "benchmarks/results").glob("*/*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_results_say_how_they_were_measured(path: Path) -> None:
    result = json.loads(path.read_text())
    if path.parent.name in ("core-guards", "witness", "latency", "imagenet-default"):
        assert result["recipe"] == default_recipe.digest(path.parent.name == "witness")
    environment = result["environment"]
    if path.parent.name in RECIPES:
        # Of the recipe as it is now.
        recipe = load(ROOT / "recipes" / f"{path.parent.name}.toml", Registry.discover())
        # A setting that came later is what it was: its default.
        assert Recipe.model_validate(result["recipe"]) == recipe
    assert set(environment) == {"command", "commit", "date", "machine", "versions"}
    assert not environment["commit"].endswith("-dirty"), "measured on uncommitted code"
    # No folder of the machine that measured, in a figure or in a report beside it.
    pages = [one.read_text() for one in path.parent.iterdir() if one.suffix != ".png"]
    assert not any(place in page for page in pages for place in ("/" + "work/", "/" + "tmp/"))


def test_pgd_alone_is_not_believed() -> None:
    """The committed lesson: what PGD calls robust is not, and the evaluation says so by itself."""
    path = ROOT / "benchmarks/results/gradient-masking/evaluation.json"
    result = json.loads(path.read_text())
    by_name = {one["name"]: one["robust_accuracy"] for one in result["attacks"]}
    assert by_name["PGD-20"] > result["worst_case"]["robust_accuracy"] + 0.2
    assert any(line.startswith("gradient masking") for line in result["warnings"])


@pytest.mark.parametrize("name", ["imagenet-default", "gradient-masking"])
def test_reports_are_one_small_file(name: str) -> None:
    page = (ROOT / "benchmarks/results" / name / "report.html").read_text()
    assert len(page) < 1_000_000
    assert 'src="http' not in page


def test_every_link_of_the_documentation_leads_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#]+)\)", prose):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
