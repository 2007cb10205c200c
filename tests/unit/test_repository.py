"""Leases, swaps and rollbacks of one model name: which model is closed, and when."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, cast

from firewall.serve.model import ServedModel
from firewall.serve.repository import Lease, ModelEntry
from firewall.serve.shadow import Shadow


class Model:
    """A model that records what its entry asks of it."""

    def __init__(self, name: str, upstream: object | None = None) -> None:
        self.name = name
        self.upstream = upstream
        self.shadow: object = None
        self.calls: list[str] = []

    def go_live(self) -> None:
        self.calls.append("live")

    def retire(self) -> None:
        self.calls.append("retired")

    def close(self) -> None:
        self.calls.append("closed")


class Candidate:
    def __init__(self, model: Model) -> None:
        self.candidate = model
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True


def entry(model: Model) -> ModelEntry:
    return ModelEntry(cast(ServedModel, model))


def swap(one: ModelEntry, model: Model) -> None:
    one.swap(cast(ServedModel, model))


def test_replaced_model_is_closed_by_its_last_lease() -> None:
    first, second, third = (Model(name, object()) for name in "abc")
    one = entry(first)
    with ExitStack() as early, ExitStack() as late:
        leased: Any = early.enter_context(Lease(one))
        late.enter_context(Lease(one))
        swap(one, second)
        assert leased is first
        with Lease(one) as now:
            assert cast(Any, now) is second
        swap(one, third)
        assert first.calls == ["live", "retired"]
        early.close()
        assert first.calls == ["live", "retired"]
        late.close()
        assert first.calls == ["live", "retired", "closed"]
    # It may be needed for a rollback.
    assert second.calls == ["live", "retired"]
    assert cast(Any, one.before) is second


def test_rollback_swaps_with_the_model_before() -> None:
    first, second = Model("a", object()), Model("b", object())
    one = entry(first)
    swap(one, second)
    swap(one, first)
    assert (cast(Any, one.live), cast(Any, one.before)) == (first, second)
    swap(one, second)
    assert "closed" not in first.calls + second.calls
    one.close()
    assert first.calls[-1] == second.calls[-1] == "closed"


def test_shared_upstream_stays_open_until_both_models_are_gone() -> None:
    shared = object()
    first, second = Model("a", shared), Model("a, other policy", shared)
    one = entry(first)
    swap(one, second)
    swap(one, Model("b", object()))
    assert "closed" not in first.calls
    swap(one, Model("c", object()))
    assert "closed" not in first.calls
    assert second.calls[-1] == "closed"


def test_shadow_follows_the_live_model_and_its_candidate_is_closed_when_dropped() -> None:
    first, second, other = Model("a"), Model("b"), Model("candidate", object())
    one, shadow = entry(first), Candidate(other)
    one.compare(cast(Shadow, shadow))
    assert first.shadow is shadow
    swap(one, second)
    assert first.shadow is None
    assert second.shadow is shadow
    assert other.calls == []
    one.compare(None)
    assert shadow.stopped
    assert second.shadow is None
    assert other.calls == ["closed"]


def test_promoted_candidate_stays_open() -> None:
    other = Model("candidate", object())
    one = entry(Model("a"))
    one.compare(cast(Shadow, Candidate(other)))
    swap(one, other)
    one.compare(None)
    assert other.calls == ["live"]
