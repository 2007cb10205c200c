"""The page of situations names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_situation_has_its_test() -> None:
    page = (ROOT / "docs/reference/what-we-checked.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and "situation" not in line]
    assert len(rows) >= 39
    for row in rows:
        [(file, name)] = re.findall(r"`(tests/\S+\.py)::(\w+)`", row)
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name in functions, f"{file} has no {name}"
