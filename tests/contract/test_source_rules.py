"""Rules of the source that no linter holds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import firewall_plugins
import pytest

import firewall

FILES = [
    path
    for package in (firewall, firewall_plugins)
    for path in sorted(Path(str(package.__file__)).parent.rglob("*.py"))
    if not path.stem.endswith("_pb2")
]


def calls(path: Path) -> Iterator[tuple[ast.Call, str]]:
    """Every call of a file, with the dotted name of what is called."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_json_is_written_without_nan_unless_it_says_so(path: Path) -> None:
    """`NaN` and `Infinity` are no JSON: no other program reads them."""
    for call, name in calls(path):
        if name in ("json.dumps", "json.dump"):
            keywords = {one.arg for one in call.keywords}
            assert "allow_nan" in keywords, f"{path}:{call.lineno}: say allow_nan=False"


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_text_file_is_read_and_written_in_a_named_encoding(path: Path) -> None:
    """Without one, it is the machine's: cp1252 on one, ASCII on another."""
    for call, name in calls(path):
        keywords = {one.arg for one in call.keywords}
        where = f"{path}:{call.lineno}: say encoding="
        if name.endswith((".read_text", ".write_text")) and name != "documents.read_text":
            assert "encoding" in keywords, where
        if name in ("open", "open_private", "os.fdopen"):
            modes = [one.value for one in call.args[1:2] if isinstance(one, ast.Constant)]
            modes += [one.value.value for one in call.keywords
                      if one.arg == "mode" and isinstance(one.value, ast.Constant)]  # fmt: skip
            binary = any("b" in str(mode) for mode in modes)
            # A path in /proc is ASCII.
            in_proc = isinstance(call.args[0], ast.Constant)
            forwarded = bool(call.args[1:2]) and not isinstance(call.args[1], ast.Constant)
            assert binary or in_proc or forwarded or "encoding" in keywords, where
