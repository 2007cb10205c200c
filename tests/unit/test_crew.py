from __future__ import annotations

import threading
from collections.abc import Callable
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
def crew(elsewhere: Elsewhere) -> Crew:
    return Crew(elsewhere, lambda: None)


def test_what_comes_meanwhile_is_one_batch(crew: Crew) -> None:
    guard, answers = Guard(), dict[int, Any]()
    for number in range(20, 50):
        crew.give(guard.ask(number, answers))
    while crew.round():
        pass
    assert answers == {number: (2 * number, "MainThread") for number in range(20, 50)}
    # All of them: rows of no time are no reason for small batches.
    assert guard.batches == [list(range(20, 50))]


def test_guards_of_a_round_have_a_batch_each(crew: Crew) -> None:
    first, second, answers = Guard(), Guard(), dict[int, Any]()
    for number in range(20, 26):
        crew.give((first if number % 2 else second).ask(number, answers))
    while crew.round():
        pass
    assert len(answers) == 6
    assert first.batches == [[21, 23, 25]]
    assert second.batches == [[20, 22, 24]]


def test_an_error_is_everyones_in_the_batch_and_ends_no_thread(crew: Crew) -> None:
    guard, answers = Guard(), dict[int, Any]()
    for number in (12, 13, 14):
        crew.give(guard.ask(number, answers))
    assert not crew.round()
    crew.give(guard.ask(15, answers))
    while crew.round():
        pass
    assert all(isinstance(answers[number], ValueError) for number in (12, 13, 14))
    assert answers[15] == (30, "MainThread")


def test_what_a_request_raises_is_its_own(crew: Crew, caplog: pytest.LogCaptureFixture) -> None:
    guard, answers = Guard(), dict[int, Any]()

    def broken() -> Steps[None]:
        yield Queued(guard.batcher, 1, 1, Call.local())
        raise SystemExit("a plugin's")

    crew.give(broken())
    crew.give(guard.ask(15, answers))
    while crew.round():
        pass
    assert answers[15] == (30, "MainThread")
    assert "a request failed" in caplog.text


def test_what_blocks_or_is_slow_goes_elsewhere(crew: Crew, elsewhere: Elsewhere) -> None:
    guard, answers = Guard(), dict[int, Any]()
    slow = Guard()
    slow.batcher._row_seconds = 0.1
    crew.give(guard.ask(1, answers, blocks=True))
    crew.give(slow.ask(2, answers))
    crew.give(guard.ask(3, answers))
    while crew.round():
        pass
    elsewhere.join()
    assert answers == {1: (2, "elsewhere"), 2: (4, "elsewhere"), 3: (6, "MainThread")}


def test_a_request_in_steps_is_the_same_in_a_thread_of_its_own() -> None:
    guard, answers = Guard(), dict[int, Any]()
    finish(guard.ask(5, answers, blocks=True))
    finish(guard.ask(13, answers))
    assert answers[5] == (10, "MainThread")
    assert isinstance(answers[13], ValueError)


def test_a_guard_that_is_busy_is_not_waited_for(crew: Crew, elsewhere: Elsewhere) -> None:
    """By the thread in which everything else happens."""
    guard, answers = Guard(), dict[int, Any]()
    entered, go = threading.Event(), threading.Event()

    def hold(work: list[int]) -> list[int]:
        entered.set()
        assert go.wait(10)
        return [2 * number for number in work]

    guard.batcher._run = hold
    other = threading.Thread(target=guard.batcher.submit, args=(1, 1, Call.local()))
    other.start()
    assert entered.wait(10)
    crew.give(guard.ask(7, answers))
    assert not crew.round()
    assert not answers
    go.set()
    other.join(10)
    elsewhere.join()
    assert answers == {7: (14, "elsewhere")}


def test_a_round_is_only_so_long_and_there_is_another(crew: Crew) -> None:
    guard, answers = Guard(), dict[int, Any]()
    for number in range(100, 200):
        crew.give(guard.ask(number, answers))
    assert crew.round()
    assert len(answers) == 64
    assert not crew.round()
    assert len(answers) == 100


def test_who_runs_it_is_told_of_every_request(elsewhere: Elsewhere) -> None:
    told: list[int] = []
    crew = Crew(elsewhere, lambda: told.append(1))
    guard, answers = Guard(), dict[int, Any]()
    crew.give(guard.ask(1, answers))
    crew.give(guard.ask(2, answers))
    assert len(told) == 2
    assert not crew.round()
    assert not crew.round()


def test_many_rows_are_several_batches_and_none_is_refused(crew: Crew) -> None:
    guard, answers = Guard(), dict[int, Any]()
    guard.batcher = Batcher(guard._run, batch_rows=8, queue_rows=100)
    guard.batcher.submit(0, 1, Call.local())
    guard.batches.clear()

    def ask(number: int) -> Steps[None]:
        answers[number] = yield Queued(guard.batcher, number, 30, Call.local())

    for number in range(20, 40):
        crew.give(ask(number))
    while crew.round():
        pass
    assert answers == {number: 2 * number for number in range(20, 40)}
    assert max(len(batch) for batch in guard.batches) <= 2
