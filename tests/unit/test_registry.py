"""Plugins that are broken, doubled or absent, each a named line and nobody else's trouble."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from firewall.errors import PluginNotFound
from firewall.stages.registry import Registry

HEAD = """
from firewall.stages import API_VERSION, Denoiser, StageConfig
from typing import ClassVar
"""
GOOD = (
    HEAD
    + """
class Stage(Denoiser):
    api_version: ClassVar[int] = API_VERSION
    class Config(StageConfig):
        pass
    def __init__(self, config):
        super().__init__()
    def forward(self, x):
        return x
"""
)


def installed(folder: Path, name: str, source: str, kind: str = "denoisers") -> None:
    """What pip leaves behind of a package with one plugin."""
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: their-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[firewall.{kind}]\n{name} = {module}:Stage\n")


def report(folder: Path) -> dict[str, str | None]:
    done = subprocess.run(
        [sys.executable, "-m", "firewall", "plugins", "--json"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(folder)},
        check=False,
    )
    if done.returncode:
        return {"": done.stderr}
    return {line["name"]: line["error"] for line in json.loads(done.stdout)}


def test_a_good_one_is_listed(tmp_path: Path) -> None:
    installed(tmp_path, "good-one", GOOD)
    assert report(tmp_path)["good-one"] is None


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import no_such_module", "No module named 'no_such_module'"),
        ("Stage = 1", "is not a subclass of firewall.stages.Denoiser"),
        (GOOD.replace("= API_VERSION", "= 99"), "has api_version 99; this firewall supports 1"),
        (GOOD.replace("    api_version: ClassVar[int] = API_VERSION\n", ""), "api_version None"),
        (GOOD.replace("(StageConfig)", ""), "no Config"),
        (GOOD.replace("        pass\n", "        model_config = {'extra': 'allow'}\n"), "unknown"),
        (GOOD.replace("def forward", "def backward"), "does not implement forward"),
    ],
)
def test_a_broken_one_is_a_line_and_stops_no_other(source: str, words: str, tmp_path: Path) -> None:
    installed(tmp_path, "bad-one", source)
    lines = report(tmp_path)
    error = lines["bad-one"]
    assert error is not None
    assert "'bad-one' of their-bad-one" in error
    assert words in error
    assert lines["median"] is None


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    installed(tmp_path, "median", GOOD)
    [error] = report(tmp_path).values()
    assert error is not None
    assert "'median' is registered twice" in error
    assert "their-median" in error
    assert "Traceback" not in error


def test_an_absent_one_is_named_with_those_that_are_there(registry: Registry) -> None:
    with pytest.raises(PluginNotFound, match=r"'mediam' is not installed; .*median"):
        registry.load("denoiser", "mediam")
