"""What is served, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from firewall.errors import NotFound
from firewall.serve.runtime import ServedModel
from firewall.serve.slot import Lease, Slot


class Models:
    """Slots by name. The names stay what they are; what is in them may change."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        """The models are live from now on."""
        self._slots = {name: Slot(model) for name, model in models.items()}

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots.values())

    @property
    def ready(self) -> bool:
        """Whether every model has passed its self-test."""
        return all(slot.live.ready for slot in self)

    @property
    def backlog_seconds(self) -> float:
        """How long the rows that wait for any of the guards will take: they share the machine."""
        return sum(slot.live.backlog_seconds for slot in self)

    def slot(self, name: str, *, default: bool = False) -> Slot:
        """What is served under a name.

        Args:
            name: as asked for.
            default: whether an empty name means the only model.

        Raises:
            NotFound: another name.

        """
        if not name and default and len(self._slots) == 1:
            (only,) = self._slots.values()
            return only
        found = self._slots.get(name)
        if found is None:
            known = ", ".join(sorted(self._slots))
            raise NotFound(f"model_name: {name[:128]!r} is not served; served: {known}")
        return found

    def lease(self, name: str, version: str = "", *, default: bool = False) -> Lease:
        """The model of that name, which stays open until the lease ends.

        Args:
            name: as asked for.
            version: as asked for; empty is the live one.
            default: whether an empty name means the only model.

        Raises:
            NotFound: another name, or, when the lease begins, another version.

        """
        return Lease(self.slot(name, default=default), version)

    def close(self) -> None:
        """Let go of everything."""
        for slot in self:
            slot.close()
