from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from firewall.serve.batcher import Batcher, Queued
from firewall.serve.call import Call
from firewall.serve.crew import Crew
from firewall.serve.staged import BLOCKING, Steps, finish


class Guard:
    """Doubles numbers, and remembers who asked for what."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.batcher: Batcher[int, int] = Batcher(self._run, batch_rows=8, queue_rows=1000)
        # Known to be quick from now on.
        self.batcher.submit(0, 1, Call.local())
        assert self.batcher.light
        self.batches.clear()

    def _run(self, work: list[int]) -> list[int]:
        self.batches.append(list(work))
        if 13 in work:
            raise ValueError("13")
        return [2 * number for number in work]

    def ask(self, number: int, answers: dict[int, Any], *, blocks: bool = False) -> Steps[None]:
        try:
            found = yield Queued(self.batcher, number, 1, Call.local())
            if blocks:
                yield BLOCKING
            answers[number] = (found, threading.current_thread().name)
        except ValueError as error:
            answers[number] = error


class Elsewhere:
    """Threads for what is handed over."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def __call__(self, task: Callable[[], Any]) -> None:
        self.threads.append(threading.Thread(target=task, name="elsewhere"))
        self.threads[-1].start()

    def join(self) -> None:
        for thread in self.threads:
            thread.join(10)


@pytest.fixture
def elsewhere() -> Elsewhere:
    return Elsewhere()


@pytest.fixture
def crew(elsewhere: Elsewhere) -> Iterator[Crew]:
    one = Crew(elsewhere)
    yield one
    one.close(10)


def held(crew: Crew) -> threading.Event:
    """The crew's thread waits for it, so that what is given meanwhile is one round."""
    begun, go = threading.Event(), threading.Event()

    def hold() -> Steps[None]:
        begun.set()
        assert go.wait(10)
        return
        yield BLOCKING

    crew.give(hold())
    assert begun.wait(10)
    return go


def test_what_comes_meanwhile_is_one_batch(crew: Crew) -> None:
    guard, answers = Guard(), dict[int, Any]()
    go = held(crew)
    for number in range(20, 50):
        crew.give(guard.ask(number, answers))
    go.set()
    crew.close(10)
    assert answers == {number: (2 * number, "crew") for number in range(20, 50)}
    # All of them: rows of no time are no reason for small batches.
    assert guard.batches == [list(range(20, 50))]


def test_guards_of_a_round_have_a_batch_each(crew: Crew) -> None:
    first, second, answers = Guard(), Guard(), dict[int, Any]()
    go = held(crew)
    for number in range(20, 26):
        crew.give((first if number % 2 else second).ask(number, answers))
    go.set()
    crew.close(10)
    assert len(answers) == 6
    assert first.batches == [[21, 23, 25]]
    assert second.batches == [[20, 22, 24]]


def test_an_error_is_everyones_in_the_batch_and_ends_no_thread(crew: Crew) -> None:
    guard, answers = Guard(), dict[int, Any]()
    go = held(crew)
    for number in (12, 13, 14):
        crew.give(guard.ask(number, answers))
    go.set()
    end = time.monotonic() + 10
    while len(answers) < 3 and time.monotonic() < end:
        time.sleep(0.005)
    crew.give(guard.ask(15, answers))
    crew.close(10)
    assert all(isinstance(answers[number], ValueError) for number in (12, 13, 14))
    assert answers[15] == (30, "crew")


def test_what_a_request_raises_is_its_own(crew: Crew, caplog: pytest.LogCaptureFixture) -> None:
    guard, answers = Guard(), dict[int, Any]()

    def broken() -> Steps[None]:
        yield Queued(guard.batcher, 1, 1, Call.local())
        raise SystemExit("a plugin's")

    go = held(crew)
    crew.give(broken())
    crew.give(guard.ask(15, answers))
    go.set()
    crew.close(10)
    assert answers[15] == (30, "crew")
    assert "a request failed" in caplog.text


def test_what_blocks_or_is_slow_goes_elsewhere(crew: Crew, elsewhere: Elsewhere) -> None:
    guard, answers = Guard(), dict[int, Any]()
    slow = Guard()
    slow.batcher._row_seconds = 0.1
    crew.give(guard.ask(1, answers, blocks=True))
    crew.give(slow.ask(2, answers))
    crew.give(guard.ask(3, answers))
    crew.close(10)
    elsewhere.join()
    assert answers == {1: (2, "elsewhere"), 2: (4, "elsewhere"), 3: (6, "crew")}


def test_a_request_in_steps_is_the_same_in_a_thread_of_its_own() -> None:
    guard, answers = Guard(), dict[int, Any]()
    finish(guard.ask(5, answers, blocks=True))
    finish(guard.ask(13, answers))
    assert answers[5] == (10, "MainThread")
    assert isinstance(answers[13], ValueError)


def test_an_end_that_is_asked_for_before_the_beginning(elsewhere: Elsewhere) -> None:
    Crew(elsewhere).close(1)


def test_many_rows_are_several_batches_and_none_is_refused(crew: Crew) -> None:
    guard, answers = Guard(), dict[int, Any]()
    guard.batcher = Batcher(guard._run, batch_rows=8, queue_rows=100)
    guard.batcher.submit(0, 1, Call.local())
    guard.batches.clear()

    def ask(number: int) -> Steps[None]:
        answers[number] = yield Queued(guard.batcher, number, 30, Call.local())

    go = held(crew)
    for number in range(20, 40):
        crew.give(ask(number))
    go.set()
    crew.close(10)
    assert answers == {number: 2 * number for number in range(20, 40)}
    assert max(len(batch) for batch in guard.batches) <= 2


def test_a_thread_that_cannot_start_is_asked_for_again(
    crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, answers = Guard(), dict[int, Any]()

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="can't start"):
            crew.give(guard.ask(1, answers))
    crew.give(guard.ask(2, answers))
    crew.close(10)
    assert answers == {2: (4, "crew")}
    with pytest.raises(RuntimeError, match="has ended"):
        crew.give(guard.ask(3, answers))
