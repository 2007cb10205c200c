"""One model name: what answers under it now, what did before, and what may come next.

Whoever answers a request holds a lease on the model that it began with, so a change fails no
request: new ones go to the new model, running ones end on the old one, and the last of them closes
it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from firewall.serve.runtime import ServedModel
from firewall.serve.shadow import Shadow


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

    @contextmanager
    def lease(self) -> Iterator[ServedModel]:
        """The live model, which stays open until the lease ends."""
        with self._lock:
            model = self._live
            self._leases[model] += 1
        try:
            yield model
        finally:
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
