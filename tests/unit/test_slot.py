"""Who closes a model that is live no more, and when; files that change."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from firewall.errors import ConfigError
from firewall.serve.files import Files
from firewall.serve.runtime import ServedModel
from firewall.serve.shadow import Shadow
from firewall.serve.slot import Slot


class Model:
    """What a slot asks of a model, written down."""

    def __init__(self, name: str, watch: object | None = None) -> None:
        self.name = name
        self.watch = watch
        self.shadow: object = None
        self.said: list[str] = []

    def go_live(self) -> None:
        self.said.append("live")

    def retire(self) -> None:
        self.said.append("retired")

    def close(self) -> None:
        self.said.append("closed")


class Candidate:
    def __init__(self, model: Model) -> None:
        self.candidate = model
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True


def slot(model: Model) -> Slot:
    return Slot(cast(ServedModel, model))


def swap(one: Slot, model: Model) -> None:
    one.swap(cast(ServedModel, model))


def test_a_request_ends_on_the_model_that_it_began_with_and_the_last_one_closes_it() -> None:
    first, second, third = (Model(name, object()) for name in "abc")
    one = slot(first)
    with ExitStack() as early, ExitStack() as late:
        leased: Any = early.enter_context(one.lease())
        late.enter_context(one.lease())
        swap(one, second)
        assert leased is first
        with one.lease() as now:
            assert cast(Any, now) is second
        swap(one, third)
        assert first.said == ["live", "retired"]
        early.close()
        assert first.said == ["live", "retired"]
        late.close()
        assert first.said == ["live", "retired", "closed"]
    # It may be needed for a rollback.
    assert second.said == ["live", "retired"]
    assert cast(Any, one.before) is second


def test_a_rollback_takes_the_one_before_and_once_more_does_it_again() -> None:
    first, second = Model("a", object()), Model("b", object())
    one = slot(first)
    swap(one, second)
    swap(one, first)
    assert (cast(Any, one.live), cast(Any, one.before)) == (first, second)
    swap(one, second)
    assert "closed" not in first.said + second.said
    one.close()
    assert first.said[-1] == second.said[-1] == "closed"


def test_a_connection_that_two_policies_share_stays_open_until_both_are_gone() -> None:
    shared = object()
    first, second = Model("a", shared), Model("a, other policy", shared)
    one = slot(first)
    swap(one, second)
    swap(one, Model("b", object()))
    assert "closed" not in first.said
    swap(one, Model("c", object()))
    assert "closed" not in first.said
    assert second.said[-1] == "closed"


def test_a_shadow_follows_the_live_model_and_its_candidate_is_closed_when_dropped() -> None:
    first, second, other = Model("a"), Model("b"), Model("candidate", object())
    one, shadow = slot(first), Candidate(other)
    one.compare(cast(Shadow, shadow))
    assert first.shadow is shadow
    swap(one, second)
    assert first.shadow is None
    assert second.shadow is shadow
    assert other.said == []
    one.compare(None)
    assert shadow.stopped
    assert second.shadow is None
    assert other.said == ["closed"]


def test_a_candidate_that_was_promoted_stays_open() -> None:
    other = Model("candidate", object())
    one = slot(Model("a"))
    one.compare(cast(Shadow, Candidate(other)))
    swap(one, other)
    one.compare(None)
    assert other.said == ["live"]


def test_files_are_acted_upon_once_and_only_when_they_have_settled(tmp_path: Path) -> None:
    policy, acted = tmp_path / "policy.toml", []

    def act() -> None:
        acted.append(policy.read_text())
        if policy.read_text() == "wrong":
            raise ConfigError("policy: wrong")

    files = Files(lambda: {policy: act}, period=3600)

    def write(text: str, when: int) -> None:
        policy.write_text(text)
        os.utime(policy, ns=(when, when))

    write("first", 1)
    files.start()
    try:
        files.look()
        assert acted == []
        write("seco", 2)
        files.look()
        write("second", 3)
        files.look()
        assert acted == []
        files.look()
        files.look()
        assert acted == ["second"]
        write("wrong", 4)
        for _ in range(3):
            files.look()
        assert acted == ["second", "wrong"]
        policy.unlink()
        files.look()
        files.look()
        write("third", 5)
        files.look()
        files.look()
        assert acted == ["second", "wrong", "third"]
    finally:
        files.stop()


@pytest.mark.parametrize("name", ["signature.json"])
def test_a_folder_changes_with_the_file_that_is_written_last(name: str, tmp_path: Path) -> None:
    acted: list[int] = []
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / name).write_text("1")
    os.utime(folder / name, ns=(1, 1))
    files = Files(lambda: {folder: lambda: acted.append(1)}, period=3600)
    files.start()
    try:
        (folder / "other.bin").write_text("x")
        files.look()
        files.look()
        assert acted == []
        os.utime(folder / name, ns=(2, 2))
        files.look()
        files.look()
        assert acted == [1]
    finally:
        files.stop()
