"""One model name: what answers under it now, what did before, and what may come next.

Whoever answers a request holds a lease on the model that it began with, so a change fails no
request: new ones go to the new model, running ones end on the old one, and the last of them closes
it.
"""

from __future__ import annotations

import threading
from collections import Counter

from firewall.errors import NotFound
from firewall.serve.runtime import ServedModel
from firewall.serve.shadow import Shadow


class Lease:
    """A context in which a slot's model stays open. Every request holds one."""

    __slots__ = ("_model", "_slot", "_version")

    def __init__(self, slot: Slot, version: str = "") -> None:
        """Nothing is held yet.

        Args:
            slot: whose live model.
            version: that it must have; empty asks for none.

        """
        self._slot, self._version = slot, version

    def __enter__(self) -> ServedModel:
        """The model; `NotFound` when it has another version."""
        model = self._model = self._slot.take()
        if self._version and self._version != model.manifest.version:
            self._slot.give(model)
            raise NotFound(
                f"model_version: {self._version[:64]!r} of {model.name!r} is not served; served: "
                f"{model.manifest.version}"
            )
        return model

    def __exit__(self, *_: object) -> None:
        self._slot.give(self._model)


class Slot:
    """Holds the live model, the one before it for a rollback, and a shadow."""

    def __init__(self, live: ServedModel) -> None:
        self._lock = threading.Lock()
        self._live = live
        self._before: ServedModel | None = None
        self._shadow: Shadow | None = None
        self._leases: Counter[ServedModel] = Counter()
        live.go_live()

    @property
    def live(self) -> ServedModel:
        """What answers now."""
        return self._live

    @property
    def before(self) -> ServedModel | None:
        """What answered before the last change."""
        return self._before

    @property
    def shadow(self) -> Shadow | None:
        """What is compared with the live model."""
        return self._shadow

    def lease(self) -> Lease:
        """The live model, which stays open until the lease ends."""
        return Lease(self)

    def take(self) -> ServedModel:
        """The live model, to be given back."""
        with self._lock:
            model = self._live
            self._leases[model] += 1
        return model

    def give(self, model: ServedModel) -> None:
        """Give back what was taken."""
        with self._lock:
            self._leases[model] -= 1
            idle = self._ended(model)
        if idle:
            model.close()

    def swap(self, model: ServedModel) -> None:
        """Let another model answer from now on; the live one is kept for a rollback."""
        with self._lock:
            dropped, self._before, self._live = self._before, self._live, model
            self._before.shadow, model.shadow = None, self._shadow
            idle = dropped is not None and self._ended(dropped)
        self._before.retire()
        model.go_live()
        if idle and dropped is not None:
            dropped.close()

    def compare(self, shadow: Shadow | None) -> None:
        """Let a candidate see what is answered, in place of another or of none."""
        with self._lock:
            old, self._shadow = self._shadow, shadow
            self._live.shadow = shadow
            idle = old is not None and self._ended(old.candidate)
        if old is not None:
            old.stop()
            if idle:
                old.candidate.close()

    def close(self) -> None:
        """Let go of everything."""
        self.compare(None)
        for model in (self._before, self._live):
            if model is not None:
                model.close()

    def _ended(self, model: ServedModel) -> bool:
        """Whether nobody asks it any more, nor anyone whose connection it shares. Locked."""
        if self._leases[model] == 0:
            del self._leases[model]
        if model.watch is None:
            return False  # nothing to close
        kept = [*self._leases, self._live, self._before]
        if self._shadow is not None:
            kept.append(self._shadow.candidate)
        return all(one is None or one.watch is not model.watch for one in kept)
