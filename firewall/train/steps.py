"""Steps of a run: each is done once for what goes into it, in a folder of its own.

A step's folder is named by the hash of its inputs, so that another setting is another folder and
the same one is found again. What was finished stays finished, whatever happens later.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from firewall import __version__
from firewall.errors import ConfigError, TrainingError

_DONE = "done.json"


class Steps:
    """Runs steps under a folder."""

    def __init__(
        self, folder: Path, progress: Callable[[str], None], *, writes: bool = True
    ) -> None:
        """Find what is there.

        Args:
            folder: of all steps.
            progress: told what begins.
            writes: False in a process that takes part in the work of another, which writes.

        """
        self._writes = writes
        self._folder = folder
        self._progress = progress
        self._code = code_digest()

    def run(self, name: str, inputs: dict[str, Any], work: Callable[[Path], None]) -> Path:
        """Do a step, or find it done.

        Args:
            name: of the step.
            inputs: everything that decides its result, as JSON takes it; digests of earlier steps
                among it.
            work: fills the folder; finds there what an earlier, interrupted try has left.

        Returns:
            The folder.

        Raises:
            TrainingError: the disk is full or cannot be written.

        """
        text = json.dumps({"code": self._code} | inputs, sort_keys=True, allow_nan=False)
        key = hashlib.sha256(text.encode()).hexdigest()
        folder = self._folder / f"{name}-{key[:16]}"
        if (folder / _DONE).exists():
            self._progress(f"{name}: done before")
            return folder
        self._progress(name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            work(folder)
            if not self._writes:
                return folder
            draft = folder / (_DONE + ".part")
            draft.write_text(
                json.dumps({"inputs": json.loads(text), "files": _hashes(folder)}, allow_nan=False),
                encoding="utf-8",
            )
            os.replace(draft, folder / _DONE)
        except OSError as error:
            what = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
            raise TrainingError(
                f"{name}: {error.filename or folder}: {what}; what was finished is kept, the same "
                "command goes on from there"
            ) from error
        return folder


def digest(folder: Path) -> str:
    """SHA-256 of what a finished step made."""
    body = json.loads((folder / _DONE).read_text(encoding="utf-8"))
    return hashlib.sha256(
        json.dumps(body["files"], sort_keys=True, allow_nan=False).encode()
    ).hexdigest()


def code_digest() -> str:
    """SHA-256 of the code that makes bundles: another version of it starts anew."""
    total = hashlib.sha256(__version__.encode())
    for package in ("firewall.train", "firewall.guard", "firewall.stages", "firewall.attack",
                    "firewall.evaluation", "firewall.lift", "firewall.sources",
                    "firewall_plugins"):  # fmt: skip
        spec = find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        [root] = spec.submodule_search_locations
        for path in sorted(Path(root).rglob("*.py")):
            total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()


def _hashes(folder: Path) -> dict[str, str]:
    """Of the files directly in a folder; what a step leaves for its own resumption is below."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.endswith(".part") and path.name != _DONE
    }


def claim(folder: Path, of: str, problem: str) -> None:
    """Take a folder for a piece of work, or find it taken for the same one.

    Args:
        folder: where its checkpoints will lie.
        of: digest of everything that decides what is made.
        problem: said when the folder is taken for another: a checkpoint is of other work.

    Raises:
        ConfigError: the folder is taken, or cannot be written.

    """
    path = folder / "begun.json"
    try:
        if path.exists():
            if json.loads(path.read_text(encoding="utf-8")) != {"of": of}:
                raise ConfigError(problem)
            return
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"of": of})
    except OSError as error:
        raise ConfigError(f"--out: {folder} cannot be written: {error.strerror}") from error


def write_json(path: Path, body: Any) -> None:
    """All of a file, or nothing of it."""
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(body, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(draft, path)
