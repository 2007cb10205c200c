"""Pages name flags, anchors and words that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from firewall.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
#: Flags of programs that are not ours.
FOREIGN = {
    # docker, kubectl, curl, pip
    "--build-arg", "--require-hashes", "--no-deps",
    # cyclonedx-py, mypy, pytest, torchrun, our benchmarks
    "--pyproject", "--output-reproducible", "--short-PURLs", "--strict", "--nproc-per-node",
}  # fmt: skip


def flags(command: Any) -> set[str]:
    """Flags of a command and of all beneath it."""
    own = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    return own.union(*(flags(one) for one in getattr(command, "commands", {}).values()), {"--help"})


def anchors(page: Path) -> set[str]:
    """Anchors of headings, as GitHub makes them."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_of_a_page_exists(page: Path) -> None:
    text = page.read_text()
    # Modules that are commands, and other projects' programs have flags of their own.
    text = re.sub(r"python -m (benchmarks|tests|deploy|firewall\.core)\S*[^`\n]*", "", text)
    named = set(re.findall(r"(?<![\w-])--[a-z][A-Za-z-]+", text))
    assert named - flags(typer.main.get_command(app)) - FOREIGN == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_anchor_of_a_page_exists(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", prose):
        other = page if not target else (page.parent / target).resolve()
        assert anchor in anchors(other), f"{page.name}: {target}#{anchor}"


def test_the_glossary_is_sorted_and_linked() -> None:
    glossary = (ROOT / "docs" / "glossary.md").read_text()
    words = re.findall(r"^\| ([^|]+) \|", glossary, re.MULTILINE)[1:]
    assert words == sorted(words)
    assert {"view", "evidence", "tier", "lease", "promise"} <= set(words)
    for name in ("README.md", "CONTRIBUTING.md"):
        assert "(docs/glossary.md)" in (ROOT / name).read_text()


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"\]\((\d{4}-[a-z0-9-]+\.md)\)", (folder / "README.md").read_text())
    assert listed == sorted(path.name for path in folder.glob("0*.md"))
