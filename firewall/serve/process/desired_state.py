"""What several workers are to serve, as one file that they watch.

The supervisor's admin service writes the file as a whole, with the next generation number. Each
worker brings itself to that state and answers with a file of its own: the generation that it has
reached, or why it could not. A worker that starts later reads the same file, so nothing has to be
replayed. All files are replaced atomically.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Version:
    """A bundle and a policy; None is what the worker's own settings say."""

    path: str | None = None
    policy: str | None = None


@dataclass(frozen=True)
class Candidate:
    """A bundle that is compared with the live one."""

    path: str
    percent: float


@dataclass(frozen=True)
class ModelState:
    """What one model is to serve now, what a rollback brings back, and what is compared."""

    live: Version = Version()
    before: Version | None = None
    candidate: Candidate | None = None
    #: Counts changes that leave the three above as they are, such as a reload of the same path.
    revision: int = 0


@dataclass(frozen=True)
class DesiredState:
    """Of all models.

    Attributes:
        generation: grows with every change.
        who: asked for the last change.
        models: by name; one that is missing serves what the settings say.
        refresh: grows when settings, policies and bundles are to be read again.
        allow_downgrade: whether the last change may serve an older version.

    """

    generation: int = 0
    who: str = "supervisor"
    models: Mapping[str, ModelState] = field(default_factory=dict)
    refresh: int = 0
    allow_downgrade: bool = False

    def to_json(self) -> str:
        """As it lies in the file."""
        return json.dumps(
            asdict(self) | {"models": {k: asdict(v) for k, v in self.models.items()}},
            allow_nan=False,
        )

    @classmethod
    def from_json(cls, text: str) -> DesiredState:
        """Read what `to_json` wrote."""
        body: dict[str, Any] = json.loads(text)
        models = {name: _model(state) for name, state in body.pop("models").items()}
        return cls(**body, models=models)


def _model(body: dict[str, Any]) -> ModelState:
    return ModelState(
        Version(**body["live"]),
        None if body["before"] is None else Version(**body["before"]),
        None if body["candidate"] is None else Candidate(**body["candidate"]),
        body["revision"],
    )


@dataclass(frozen=True)
class WorkerReport:
    """What a worker says of itself.

    Attributes:
        pid: of its process.
        generation: that it has reached, or tried to reach.
        problem: why it could not; empty when it could.
        ready: whether it answers requests.
        models: status of every model, as `AdminService.Status` has it, as JSON.

    """

    pid: int
    generation: int
    problem: str
    ready: bool
    models: list[dict[str, Any]]


class RunFolder:
    """The folder by which a supervisor and its workers talk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls) -> RunFolder:
        """Make a new one that only this user can read."""
        folder = cls(Path(tempfile.mkdtemp(prefix="firewall-")))
        folder.metrics.mkdir()
        return folder

    @property
    def metrics(self) -> Path:
        """Where prometheus_client's multiprocess mode keeps its files."""
        return self.path / "metrics"

    def write_desired(self, state: DesiredState) -> None:
        """Replace the desired state."""
        _replace(self.path / "desired.json", state.to_json())

    def read_desired(self) -> DesiredState:
        """Read the desired state; the first one when nothing has been written."""
        try:
            return DesiredState.from_json((self.path / "desired.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return DesiredState()

    def write_report(self, number: int, report: WorkerReport) -> None:
        """Replace a worker's report."""
        _replace(self.path / f"worker-{number}.json", json.dumps(asdict(report), allow_nan=False))

    def read_report(self, number: int) -> WorkerReport | None:
        """Read a worker's report; None when there is none."""
        try:
            return WorkerReport(
                **json.loads((self.path / f"worker-{number}.json").read_text(encoding="utf-8"))
            )
        except FileNotFoundError:
            return None

    def remove_report(self, number: int) -> None:
        """Forget a worker that has ended."""
        (self.path / f"worker-{number}.json").unlink(missing_ok=True)


def _replace(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
