"""What is served, by model name, and leases on it.

A request holds a lease on the model that it began with, so a change fails no request: new requests
go to the new model, running ones end on the old one, and the last of them closes it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping

from firewall.errors import NotFound
from firewall.serve.model import ServedModel
from firewall.serve.shadow import Shadow


class Lease:
    """A context in which an entry's live model stays open."""

    __slots__ = ("_entry", "_model", "_version")

    def __init__(self, entry: ModelEntry, version: str = "") -> None:
        """Hold nothing yet.

        Args:
            entry: whose live model.
            version: that it must have; empty accepts any.

        """
        self._entry, self._version = entry, version

    def __enter__(self) -> ServedModel:
        """Take the model; `NotFound` when it has another version."""
        model = self._model = self._entry.take()
        if self._version and self._version != model.manifest.version:
            self._entry.give_back(model)
            raise NotFound(
                f"model_version: {self._version[:64]!r} of {model.name!r} is not served; served: "
                f"{model.manifest.version}"
            )
        return model

    def __exit__(self, *_: object) -> None:
        self._entry.give_back(self._model)


class ModelEntry:
    """The live model of one name, the one before it for a rollback, and a candidate's shadow."""

    def __init__(self, live: ServedModel) -> None:
        self._lock = threading.Lock()
        self._live = live
        self._before: ServedModel | None = None
        self._shadow: Shadow | None = None
        self._leases: Counter[ServedModel] = Counter()
        live.go_live()

    @property
    def live(self) -> ServedModel:
        """The model that answers now."""
        return self._live

    @property
    def before(self) -> ServedModel | None:
        """The model that answered before the last change."""
        return self._before

    @property
    def shadow(self) -> Shadow | None:
        """The candidate that is compared with the live model."""
        return self._shadow

    def take(self) -> ServedModel:
        """Take the live model, which has to be given back."""
        with self._lock:
            model = self._live
            self._leases[model] += 1
        return model

    def give_back(self, model: ServedModel) -> None:
        """Give back what was taken; the last lease of a replaced model closes it."""
        with self._lock:
            self._leases[model] -= 1
            unused = self._unused(model)
        if unused:
            model.close()

    def swap(self, model: ServedModel) -> None:
        """Answer by another model from now on, and keep the live one for a rollback."""
        with self._lock:
            dropped, self._before, self._live = self._before, self._live, model
            self._before.shadow, model.shadow = None, self._shadow
            unused = dropped is not None and self._unused(dropped)
        self._before.retire()
        model.go_live()
        if unused and dropped is not None:
            dropped.close()

    def compare(self, shadow: Shadow | None) -> None:
        """Let a candidate see the traffic, in place of another candidate or of none."""
        with self._lock:
            old, self._shadow = self._shadow, shadow
            self._live.shadow = shadow
            unused = old is not None and self._unused(old.candidate)
        if old is not None:
            old.stop()
            if unused:
                old.candidate.close()

    def close(self) -> None:
        """Close every model."""
        self.compare(None)
        for model in (self._before, self._live):
            if model is not None:
                model.close()

    def _unused(self, model: ServedModel) -> bool:
        """Whether neither the model nor any that shares its upstream is in use. Locked."""
        if self._leases[model] == 0:
            del self._leases[model]
        if model.upstream is None:
            return False  # nothing to close
        kept = [*self._leases, self._live, self._before]
        if self._shadow is not None:
            kept.append(self._shadow.candidate)
        return all(other is None or other.upstream is not model.upstream for other in kept)


class ModelRepository:
    """Entries by name. The set of names is fixed; what they serve may change."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        """Serve the models from now on."""
        self._entries = {name: ModelEntry(model) for name, model in models.items()}

    def __iter__(self) -> Iterator[ModelEntry]:
        return iter(self._entries.values())

    @property
    def ready(self) -> bool:
        """Whether every model is ready."""
        return all(entry.live.ready for entry in self)

    @property
    def backlog_seconds(self) -> float:
        """Seconds that the rows waiting for any guard will take: they share the machine."""
        return sum(entry.live.backlog_seconds for entry in self)

    def entry(self, name: str, *, default: bool = False) -> ModelEntry:
        """Find what is served under a name.

        Args:
            name: as asked for.
            default: whether an empty name means the only model.

        Raises:
            NotFound: no such name.

        """
        if not name and default and len(self._entries) == 1:
            (only,) = self._entries.values()
            return only
        entry = self._entries.get(name)
        if entry is None:
            known = ", ".join(sorted(self._entries))
            raise NotFound(f"model_name: {name[:128]!r} is not served; served: {known}")
        return entry

    def lease(self, name: str, version: str = "", *, default: bool = False) -> Lease:
        """Lease the live model of a name.

        Args:
            name: as asked for.
            version: as asked for; empty means the live one.
            default: whether an empty name means the only model.

        Raises:
            NotFound: no such name or, when the lease begins, another version.

        """
        return Lease(self.entry(name, default=default), version)

    def close(self) -> None:
        """Close every model."""
        for entry in self:
            entry.close()
