"""Write the pinned and hashed requirements of the images: `python -m deploy.lock`.

The images install with `pip install --require-hashes --no-deps`, so that nothing gets into them
that is not named here, byte by byte. Versions are those of `constraints.txt`; hashes are those that
pip reports for the archives it would install. The files name no index and no URL: pip takes both
from the configuration of the machine that builds.

| file | for |
|---|---|
| `requirements.txt` | both images: everything except the runtime of the classifier |
| `requirements-cpu.txt` | the CPU image: onnxruntime |
| `requirements-gpu.txt` | the GPU image: onnxruntime-gpu |
| `requirements-build.txt` | the build stage: what makes the wheel of this project |

Run it again after every change of dependencies in `pyproject.toml` or `constraints.txt`; a test
(`tests/contract/test_supply_chain.py`) fails while the files are stale.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
#: Extras of the project that the images have.
EXTRAS = ("postgresql", "redis", "tracing")
#: Packages of which an image has one, in a file of its own.
RUNTIMES = {"cpu": "onnxruntime", "gpu": "onnxruntime-gpu"}
#: The images run on glibc 2.34 or later.
_GLIBC = range(17, 35)

_HEADER = """\
# Written by `python -m deploy.lock`; do not edit.
"""


@dataclass(frozen=True)
class Platform:
    """An interpreter and a machine that an image is built for."""

    python: str
    machine: str

    @property
    def options(self) -> list[str]:
        """Options of pip that choose wheels of the platform."""
        tags = [f"manylinux_2_{minor}_{self.machine}" for minor in reversed(_GLIBC)]
        options = [
            "--only-binary=:all:", "--implementation=cp", f"--python-version={self.python}",
        ]  # fmt: skip
        return [
            *options,
            *(f"--platform={tag}" for tag in (*tags, f"manylinux2014_{self.machine}")),
        ]


#: Platforms of each image.
PLATFORMS = {
    "cpu": (Platform("3.11", "x86_64"), Platform("3.11", "aarch64")),
    "gpu": (Platform("3.12", "x86_64"),),
}


@dataclass
class Pin:
    """A version of a package, and the SHA-256 of its archives."""

    version: str
    hashes: set[str] = field(default_factory=set)


Pins = dict[str, Pin]


def main() -> None:
    """Write the four files."""
    parser = argparse.ArgumentParser(description="Write the hashed requirements of the images.")
    parser.add_argument("--out", type=Path, default=ROOT / "deploy")
    out = parser.parse_args().out
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = list(requirements(project))
    common: Pins = {}
    runtimes: dict[str, Pins] = {}
    for image, runtime in RUNTIMES.items():
        pins: Pins = {}
        for platform in PLATFORMS[image]:
            # Markers of packages are evaluated by the running interpreter, which need not be the
            # image's: dependencies are resolved for one platform, archives are taken for each.
            resolved = resolve([*wanted, runtime_pin(runtime)], PLATFORMS["cpu"][0])
            merge(pins, archives(resolved, platform))
        runtimes[image] = {runtime: pins.pop(runtime)}
        merge(common, pins)
    build = resolve(project["build-system"]["requires"], PLATFORMS["cpu"][0])
    write(out / "requirements.txt", common)
    for image, pins in runtimes.items():
        write(out / f"requirements-{image}.txt", pins)
    write(out / "requirements-build.txt", build)


def requirements(project: Mapping[str, Any], extras: Iterable[str] = EXTRAS) -> Iterator[str]:
    """Requirements of the project and of some extras, without the runtimes.

    Args:
        project: content of `pyproject.toml`.
        extras: names; extras that name other extras of the project are followed.

    """
    optional = project["project"]["optional-dependencies"]
    lines = list(project["project"]["dependencies"])
    ahead = list(extras)
    while ahead:
        for line in optional[ahead.pop(0)]:
            requirement = Requirement(line)
            if canonicalize_name(requirement.name) == project["project"]["name"]:
                ahead += sorted(requirement.extras)
            else:
                lines.append(line)
    for line in lines:
        if canonicalize_name(Requirement(line).name) not in RUNTIMES.values():
            yield line


def runtime_pin(name: str) -> str:
    """Requirement of a runtime: both have the version that `constraints.txt` gives for one."""
    versions = constraints()
    for runtime in (name, *RUNTIMES.values()):
        if runtime in versions:
            return f"{name}=={versions[runtime]}"
    raise SystemExit(f"constraints.txt: has none of {', '.join(RUNTIMES.values())}")


def constraints() -> dict[str, str]:
    """Versions by canonical name, as `constraints.txt` has them."""
    lines = (line.partition("#")[0].strip() for line in CONSTRAINTS.read_text().splitlines())
    pairs = (line.split("==") for line in lines if line)
    return {canonicalize_name(name): version for name, version in pairs}


def resolve(wanted: Iterable[str], platform: Platform) -> Pins:
    """Ask pip which archives it would install."""
    return report([*wanted], ["-c", str(CONSTRAINTS), *platform.options])


def archives(pins: Pins, platform: Platform) -> Pins:
    """The archives of the same versions for another platform."""
    lines = [f"{name}=={pin.version}" for name, pin in pins.items()]
    return report(lines, ["--no-deps", *platform.options])


def report(lines: list[str], options: list[str]) -> Pins:
    """Run `pip install --dry-run --report`.

    Raises:
        SystemExit: pip fails, or an archive has no SHA-256.

    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        command = [
            sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet",
            "--dry-run", "--ignore-installed", "--target", folder, "--report", str(path),
            *options, *lines,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"pip cannot resolve {' '.join(lines)}:\n{done.stderr}")
        body = json.loads(path.read_text())
    pins: Pins = {}
    for item in body["install"]:
        name = canonicalize_name(item["metadata"]["name"])
        digest = item["download_info"]["archive_info"].get("hashes", {}).get("sha256")
        if digest is None:
            raise SystemExit(f"pip reports no SHA-256 for {name}")
        pins[name] = Pin(item["metadata"]["version"], {digest})
    return pins


def merge(pins: Pins, more: Pins) -> None:
    """Add pins to others.

    Raises:
        SystemExit: two platforms have different versions of a package.

    """
    for name, pin in more.items():
        known = pins.setdefault(name, Pin(pin.version))
        if known.version != pin.version:
            raise SystemExit(
                f"{name}: {known.version} and {pin.version} on two platforms; add it to "
                "constraints.txt"
            )
        known.hashes |= pin.hashes


def write(path: Path, pins: Pins) -> None:
    """Write a requirements file."""
    lines = [_HEADER]
    for name, pin in sorted(pins.items()):
        hashes = " \\\n".join(f"    --hash=sha256:{digest}" for digest in sorted(pin.hashes))
        lines.append(f"{name}=={pin.version} \\\n{hashes}\n")
    path.write_text("".join(lines))
    print(f"{path}: {len(pins)} packages", file=sys.stderr)


if __name__ == "__main__":
    main()
