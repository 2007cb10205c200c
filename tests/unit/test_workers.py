"""The threads of a server."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable

import pytest

from firewall.serve.workers import Workers


def until(what: Callable[[], bool]) -> None:
    for _ in range(1000):
        if what():
            return
        time.sleep(0.005)
    raise AssertionError("it never came to that")


def test_all_is_done_and_told() -> None:
    workers = Workers(4, "t")
    done: list[int] = []
    told: list[object] = []
    for number in range(500):
        workers.submit(done.append, number).add_done_callback(told.append)
    until(lambda: len(told) == 500)
    assert sorted(done) == list(range(500))
    workers.shutdown()


def test_one_who_asks_after_the_end_is_told_at_once() -> None:
    workers = Workers(1, "t")
    done = threading.Event()
    handle = workers.submit(done.set)
    assert done.wait(5)
    told = threading.Event()
    handle.add_done_callback(lambda _: told.set())
    assert told.wait(5)
    workers.shutdown()


def test_who_is_asked_one_at_a_time_uses_one_thread() -> None:
    workers = Workers(8, "t")
    seen: set[int] = set()
    for _ in range(50):
        done = threading.Event()

        def work(done: threading.Event = done) -> None:
            seen.add(threading.get_ident())

        workers.submit(work).add_done_callback(lambda _, done=done: done.set())  # type: ignore[misc]
        assert done.wait(5)
        until(lambda: bool(workers._idle))
    assert len(seen) == 1
    workers.shutdown()


def test_what_no_thread_is_free_for_waits_and_is_counted() -> None:
    workers = Workers(2, "t")
    go = threading.Event()
    order: list[int] = []
    for _ in range(2):
        workers.submit(go.wait, 10)
    for number in range(3):
        workers.submit(order.append, number)
    until(lambda: workers.waiting == 3)
    go.set()
    until(lambda: len(order) == 3)
    assert workers.waiting == 0
    workers.shutdown()


def test_a_failure_costs_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    workers = Workers(1, "t")
    done = threading.Event()

    def fail() -> None:
        raise ValueError("mine")

    workers.submit(fail)
    workers.submit(done.set)
    assert done.wait(5)
    assert "a request's thread failed" in caplog.text
    workers.shutdown()


def test_threads_end_after_the_shutdown() -> None:
    workers = Workers(4, "ending")
    go = threading.Event()
    done: list[int] = []
    for number in range(6):
        workers.submit(lambda number=number: (go.wait(10), done.append(number)))  # type: ignore[misc]
    until(lambda: workers.waiting == 2)
    workers.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        workers.submit(go.wait)
    go.set()
    until(lambda: not any(one.name.startswith("ending") for one in threading.enumerate()))
    assert sorted(done) == list(range(6))


@pytest.mark.parametrize("raised", [ValueError, SystemExit, KeyboardInterrupt])
def test_whatever_a_task_raises_its_thread_stays(
    raised: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    workers = Workers(1, "t")

    def fail() -> None:
        raise raised

    for _ in range(3):
        workers.submit(fail)
    done = threading.Event()
    workers.submit(done.set)
    assert done.wait(5)
    workers.shutdown()


def test_nothing_of_a_task_stays_while_its_thread_sleeps() -> None:
    class Held:
        pass

    workers = Workers(1, "t")
    held = Held()
    there = weakref.ref(held)
    workers.submit(lambda one: None, held)
    until(lambda: bool(workers._idle))
    del held
    gc.collect()
    assert there() is None
    workers.shutdown()


def test_closing_waits_for_what_runs_and_no_longer_than_told() -> None:
    workers = Workers(2, "t")
    go, done = threading.Event(), threading.Event()
    workers.submit(lambda: (go.wait(10), done.set()))
    begun = time.monotonic()
    workers.close(0.1)
    assert time.monotonic() - begun < 5
    assert not done.is_set()
    go.set()
    workers.close(5)
    assert done.is_set()
    assert not any(thread.is_alive() for thread in workers._all)
