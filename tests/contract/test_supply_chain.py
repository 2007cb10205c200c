"""What the images install: named, hashed, and what the project asks for."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.lock import EXTRAS, PLATFORMS, RUNTIMES, constraints, requirements

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FILES = sorted(path.name for path in DEPLOY.glob("requirements*.txt"))
STALE = "stale: run python -m deploy.lock"


def pins(name: str) -> dict[str, tuple[str, list[str]]]:
    """Version and hashes by package."""
    text = (DEPLOY / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    found = {}
    for line in lines:
        match = re.fullmatch(r"([a-z0-9-]+)==([A-Za-z0-9.+!]+)((?:\s+--hash=sha256:\S+)+)", line)
        assert match is not None, f"{name}: {line!r}"
        found[match[1]] = (match[2], re.findall(r"sha256:(\S+)", match[3]))
    return found


@pytest.mark.parametrize("name", FILES)
def test_every_line_is_a_version_with_hashes_and_no_place(name: str) -> None:
    for version, hashes in pins(name).values():
        assert version
        assert hashes == sorted(set(hashes))
        assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in hashes)
    text = (DEPLOY / name).read_text()
    for word in ("://", "--index", "--find-links", " @ ", "-e "):
        assert word not in text


@pytest.mark.parametrize("name", FILES)
def test_versions_are_those_of_the_constraints(name: str) -> None:
    known = constraints()
    # Both runtimes have the version of the one that the constraints name.
    known |= dict.fromkeys(RUNTIMES.values(), known["onnxruntime-gpu"])
    for package, (version, _) in pins(name).items():
        assert known.get(package) == version, f"{package}: {STALE}, or constraints.txt lacks it"


@pytest.mark.parametrize("image", PLATFORMS)
def test_every_dependency_of_an_image_is_pinned(image: str) -> None:
    pinned = pins("requirements.txt") | pins(f"requirements-{image}.txt")
    assert RUNTIMES[image] in pinned
    for platform in PLATFORMS[image]:
        environment = {
            "python_version": platform.python,
            "python_full_version": f"{platform.python}.0",
            "platform_machine": platform.machine,
            "sys_platform": "linux",
            "platform_system": "Linux",
            "os_name": "posix",
        }
        for line in requirements(PROJECT):
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate(environment):
                name = canonicalize_name(wanted.name)
                assert name in pinned, f"{name}: {STALE}"
                assert wanted.specifier.contains(pinned[name][0]), f"{name}: {STALE}"


def test_the_build_stage_has_the_build_system() -> None:
    pinned = pins("requirements-build.txt")
    for line in PROJECT["build-system"]["requires"]:
        wanted = Requirement(line)
        assert wanted.specifier.contains(pinned[canonicalize_name(wanted.name)][0]), STALE


def test_extras_of_extras_are_followed() -> None:
    assert EXTRAS
    names = {Requirement(line).name for line in requirements(PROJECT, ["postgresql"])}
    assert {"sqlalchemy", "psycopg"} <= names
    assert not names & set(RUNTIMES.values())


def test_the_images_install_nothing_without_a_hash() -> None:
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    installs = re.findall(r"pip (?:install|wheel)[^&\n]*", text)
    assert len(installs) == 6
    for command in installs:
        assert "--no-deps" in command
        assert ("--require-hashes" in command) != ("--no-index" in command)
    used = set(re.findall(r"-r (?:deploy/)?(\S+)", text))
    assert used == set(FILES)


def test_base_images_are_arguments_which_may_have_a_digest() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", text, re.MULTILINE))
    assert arguments.keys() == {"PYTHON_IMAGE", "CUDA_IMAGE"}
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE))
    for base in re.findall(r"^FROM (\S+) AS", text, re.MULTILINE):
        assert base in stages or base in ("${PYTHON_IMAGE}", "${CUDA_IMAGE}")
    for value in arguments.values():
        assert re.fullmatch(r"[a-z0-9/.:-]+(@sha256:[0-9a-f]{64})?", value)


def test_the_bill_of_materials_is_valid_cyclonedx(tmp_path: Path) -> None:
    """The command of docs/operations.md, for the environment that runs the tests."""
    command = re.findall(
        r"^(cyclonedx-py environment .*)$", (ROOT / "docs" / "operations.md").read_text(), re.M
    )
    [words] = [line.split() for line in command]
    out = tmp_path / "sbom.json"
    words[words.index("sbom.json")] = str(out)
    words[words.index("/opt/firewall/bin/python")] = sys.executable
    subprocess.run(
        [str(Path(sys.executable).with_name("cyclonedx-py")), *words[1:]],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    body: dict[str, Any] = json.loads(out.read_text())
    assert (body["bomFormat"], body["specVersion"]) == ("CycloneDX", "1.6")
    assert body["metadata"]["component"]["name"] == "robustness-firewall"
    found = {canonicalize_name(one["name"]): one for one in body["components"]}
    for line in requirements(PROJECT, ()):
        component = found[canonicalize_name(Requirement(line).name)]
        assert component["purl"].startswith("pkg:pypi/")
        assert component["version"]
