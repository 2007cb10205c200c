from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from firewall.errors import Cancelled, DeadlineExceeded, Overloaded
from firewall.serve.batcher import Batcher
from firewall.serve.context import RequestContext


class Gate:
    """Work that blocks until it is let go, and remembers its batches."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, work: list[int]) -> list[int]:
        self.batches.append(work)
        self.entered.set()
        assert self.open.wait(10)
        return [-number for number in work]


def batcher(gate: Callable[[list[int]], list[int]], **options: int) -> Batcher[int, int]:
    return Batcher(gate, **({"batch_rows": 8, "queue_rows": 16} | options))


def waiting(one: Batcher[int, int], rows: int) -> None:
    for _ in range(1000):
        if one.queued_rows == rows:
            return
        time.sleep(0.005)
    raise AssertionError(f"{one.queued_rows} rows wait, expected {rows}")


def test_each_gets_its_own_result_whoever_leads() -> None:
    one = batcher(lambda work: [-number for number in work], queue_rows=10_000)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda n: one.submit(n, 1, RequestContext.local()), range(2000)))
    assert found == [-number for number in range(2000)]
    assert one.queued_rows == 0


def test_what_waits_is_run_together_and_in_order() -> None:
    gate = Gate()
    one = batcher(gate, batch_rows=3)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(one.submit, 0, 1, RequestContext.local())]
        assert gate.entered.wait(5)
        for number in range(1, 6):
            futures.append(pool.submit(one.submit, number, 1, RequestContext.local()))
            waiting(one, number)
        # Rows of a twentieth of a second: of quick ones more would go together.
        time.sleep(0.05)
        gate.open.set()
        assert [future.result(5) for future in futures] == [0, -1, -2, -3, -4, -5]
    assert gate.batches == [[0], [1, 2, 3], [4, 5]]


def test_quick_rows_go_together_in_greater_numbers() -> None:
    gate = Gate()
    one = batcher(gate, batch_rows=3, queue_rows=100)
    gate.open.set()
    for number in range(100):
        one.submit(number, 1, RequestContext.local())
    gate.open.clear()
    gate.entered.clear()
    with ThreadPoolExecutor(12) as pool:
        # So many rows that each of them is quick, however long they are held up together.
        futures = [pool.submit(one.submit, 0, 100_000, RequestContext.local())]
        assert gate.entered.wait(5)
        for number in range(1, 11):
            futures.append(pool.submit(one.submit, number, 1, RequestContext.local()))
            waiting(one, number)
        gate.open.set()
        assert [future.result(5) for future in futures] == [-number for number in range(11)]
    assert gate.batches[100:] == [[0], list(range(1, 11))]


@pytest.mark.parametrize("others", [0, 3])
def test_what_is_no_exception_becomes_one(others: int) -> None:
    """Nobody above answers for a SystemExit: alone, and among others."""
    gate = Gate()

    def run(work: list[int]) -> list[int]:
        gate(work)
        raise SystemExit(1)

    one = batcher(run)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(one.submit, 0, 1, RequestContext.local())]
        assert gate.entered.wait(5)
        for number in range(1, others + 1):
            futures.append(pool.submit(one.submit, number, 1, RequestContext.local()))
            waiting(one, number)
        gate.open.set()
        for future in futures:
            with pytest.raises(RuntimeError, match="a stage ended with SystemExit"):
                future.result(5)


def test_a_full_queue_says_when_to_come_back() -> None:
    gate = Gate()
    one = batcher(gate, queue_rows=4)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(one.submit, 1, 1, RequestContext.local())
        assert gate.entered.wait(5)
        second = pool.submit(one.submit, 2, 4, RequestContext.local())
        waiting(one, 4)
        with pytest.raises(Overloaded, match="4 rows wait, at most 4") as caught:
            one.submit(3, 1, RequestContext.local())
        assert caught.value.retry_after > 0
        gate.open.set()
        assert (first.result(5), second.result(5)) == (-1, -2)


def test_a_deadline_that_passes_in_the_queue_costs_no_inference() -> None:
    gate = Gate()
    one = batcher(gate)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(one.submit, 1, 1, RequestContext.local())
        assert gate.entered.wait(5)
        with pytest.raises(DeadlineExceeded):
            one.submit(2, 1, RequestContext.local(timeout=0.05))
        assert one.queued_rows == 0
        gate.open.set()
        assert first.result(5) == -1
    assert gate.batches == [[1]]


def test_a_deadline_that_has_passed_is_not_queued() -> None:
    with pytest.raises(DeadlineExceeded):
        batcher(lambda work: work).submit(1, 1, RequestContext.local(timeout=-1))


def test_a_caller_who_goes_away_frees_the_slot() -> None:
    gate = Gate()
    one = batcher(gate)
    leave: list[Callable[[], None]] = []

    def register(callback: Callable[[], None]) -> bool:
        leave.append(callback)
        return True

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(one.submit, 1, 1, RequestContext.local())
        assert gate.entered.wait(5)
        second = pool.submit(one.submit, 2, 1, RequestContext("id", "client", None, register))
        waiting(one, 1)
        leave[0]()
        with pytest.raises(Cancelled):
            second.result(5)
        assert one.queued_rows == 0
        gate.open.set()
        assert first.result(5) == -1
    assert gate.batches == [[1]]


def test_an_exception_reaches_everyone_in_the_batch_and_the_next_batch_runs() -> None:
    gate = Gate()
    calls: list[int] = []

    def work(batch: list[int]) -> list[int]:
        calls.append(len(batch))
        gate(batch)
        if len(batch) == 2:
            raise RuntimeError("broken")
        return batch

    one = batcher(work)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(one.submit, 1, 1, RequestContext.local())
        assert gate.entered.wait(5)
        others = [pool.submit(one.submit, number, 1, RequestContext.local()) for number in (2, 3)]
        waiting(one, 2)
        gate.open.set()
        assert first.result(5) == 1
        for other in others:
            with pytest.raises(RuntimeError, match="broken"):
                other.result(5)
    assert one.submit(4, 1, RequestContext.local()) == 4
    assert calls == [1, 2, 1]


def test_a_batch_larger_than_the_limit_runs_alone() -> None:
    one = batcher(lambda work: work, batch_rows=2)
    assert one.submit(7, 50, RequestContext.local()) == 7


def test_several_lanes_run_at_a_time_and_lose_nothing() -> None:
    """Of a guard that waits for another server: two batches are away at once, and no third."""
    lock = threading.Lock()
    now = most = 0

    def run(work: list[int]) -> list[int]:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.005)
        with lock:
            now -= 1
        return [2 * one for one in work]

    batcher: Batcher[int, int] = Batcher(run, batch_rows=3, queue_rows=1000, lanes=2)
    found: dict[int, int] = {}

    def ask(number: int) -> None:
        found[number] = batcher.submit(number, 1, RequestContext.local(20.0))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == {number: 2 * number for number in range(60)}
    assert most == 2
    assert batcher.queued_rows == 0
    # Idle again: the next one runs at once.
    assert batcher.submit(7, 1, RequestContext.local(5.0)) == 14


def test_a_leader_that_wakes_late_gives_its_lane_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chosen to lead, it is slow to wake, and another lane runs its work meanwhile."""
    hold = threading.Event()

    original = threading.Event.wait

    def slow(self: threading.Event, timeout: float | None = None) -> bool:
        woken = original(self, timeout)
        if threading.current_thread().name == "late":
            assert original(hold, 10)
        return woken

    gates = {"a": threading.Event(), "b": threading.Event()}
    entered: list[str] = []

    def run(work: list[str]) -> list[str]:
        entered.extend(work)
        for one in work:
            if one in gates:
                assert gates[one].wait(10)
        return work

    one: Batcher[str, str] = Batcher(run, batch_rows=8, queue_rows=100, lanes=2)
    found: list[str] = []

    def ask(name: str) -> threading.Thread:
        thread = threading.Thread(
            target=lambda: found.append(one.submit(name, 1, RequestContext.local(20.0))), name=name
        )
        thread.start()
        return thread

    def until(done: Callable[[], bool]) -> None:
        for _ in range(1000):
            if done():
                return
            time.sleep(0.005)
        raise AssertionError("waited for five seconds")

    first = [ask(name) for name in gates]
    until(lambda: len(entered) == 2)
    monkeypatch.setattr(threading.Event, "wait", slow)
    late = ask("late")
    until(lambda: one.queued_rows == 1)
    for name, thread in zip(gates, first, strict=True):
        gates[name].set()
        thread.join(10)
    # Finds a free lane, and takes what waits before itself.
    ask("next").join(10)
    assert entered[2:] == ["late", "next"]
    hold.set()
    late.join(10)
    assert sorted(found) == ["a", "b", "late", "next"]
    # Both lanes are free again.
    now = threading.Barrier(3, timeout=10)
    one._run = lambda work: [str(now.wait()) for _ in work]
    pair = [ask("x"), ask("y")]
    now.wait()
    for thread in pair:
        thread.join(10)
    assert len(found) == 6


def test_what_fails_at_once_says_nothing_of_how_long_rows_take() -> None:
    def run(work: list[int]) -> list[int | Exception]:
        if work == [13]:
            raise ValueError("13")
        if work == [14]:
            return [ValueError("14")]
        time.sleep(0.02)
        return [-number for number in work]

    one: Batcher[int, int] = Batcher(run, batch_rows=8, queue_rows=16)
    assert one.submit(1, 1, RequestContext.local()) == -1
    for _ in range(30):
        for number in (13, 14):
            with pytest.raises(ValueError, match=str(number)):
                one.submit(number, 1, RequestContext.local())


def test_backlog_is_the_time_of_the_waiting_rows() -> None:
    gate = Gate()
    one = batcher(gate)
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(one.submit, 0, 1, RequestContext.local())]
        assert gate.entered.wait(5)
        time.sleep(0.05)
        gate.open.set()
        futures[0].result(10)
        gate.open.clear()
        gate.entered.clear()
        futures.append(pool.submit(one.submit, 1, 1, RequestContext.local()))
        assert gate.entered.wait(5)
        futures += [pool.submit(one.submit, number, 1, RequestContext.local()) for number in (2, 3)]
        waiting(one, 2)
        assert one.backlog_seconds >= 2 * 0.05
        gate.open.set()
        for future in futures:
            future.result(10)
    assert one.backlog_seconds == 0


def test_enqueued_work_is_batched_and_called_back() -> None:
    gate = Gate()
    one = batcher(gate, queue_rows=100)
    found: list[Any] = []
    everything = threading.Event()

    def on_done(outcome: Any) -> None:
        found.append(outcome)
        if len(found) == 6:
            everything.set()

    one.enqueue(0, 1, RequestContext.local(), on_done)
    assert gate.entered.wait(5)
    for number in range(1, 6):
        one.enqueue(number, 1, RequestContext.local(), on_done)
    assert one.queued_rows == 5
    gate.open.set()
    assert everything.wait(10)
    assert found == [0, -1, -2, -3, -4, -5]
    assert gate.batches == [[0], [1, 2, 3, 4, 5]]


def test_enqueued_and_waiting_callers_share_batches_and_turns() -> None:
    one = batcher(lambda work: [-number for number in work], queue_rows=10_000)
    found: list[int] = []
    done = threading.Event()

    def on_done(outcome: Any) -> None:
        found.append(outcome)
        if len(found) == 1000:
            done.set()

    def enqueue() -> None:
        for number in range(1000):
            one.enqueue(number, 1, RequestContext.local(), on_done)

    with ThreadPoolExecutor(9) as pool:
        enqueuing = pool.submit(enqueue)
        waited = list(pool.map(lambda n: one.submit(n, 1, RequestContext.local()), range(1000)))
        enqueuing.result(20)
    assert done.wait(20)
    assert waited == [-number for number in range(1000)]
    assert sorted(found) == sorted(waited)
    assert one.queued_rows == 0


def test_enqueued_work_that_fails_is_told_so() -> None:
    def run(work: list[int]) -> list[int | Exception]:
        if 13 in work:
            raise ValueError("13")
        return [ValueError("14") if number == 14 else -number for number in work]

    one: Batcher[int, int] = Batcher(run, batch_rows=1, queue_rows=16)
    outcomes: dict[int, Any] = {}
    done = threading.Event()

    def on_done(number: int, outcome: Any) -> None:
        outcomes[number] = outcome
        if len(outcomes) == 3:
            done.set()

    for number in (13, 14, 15):
        one.enqueue(
            number,
            1,
            RequestContext.local(),
            lambda outcome, number=number: on_done(number, outcome),
        )
    assert done.wait(10)
    assert isinstance(outcomes[13], ValueError)
    assert isinstance(outcomes[14], ValueError)
    assert outcomes[15] == -15


def test_enqueued_work_whose_caller_goes_away_is_dropped() -> None:
    gate = Gate()
    one = batcher(gate)
    gone: list[Callable[[], None]] = []
    context = RequestContext("id", "me", None, lambda callback: not gone.append(callback))
    outcomes: list[Any] = []
    one.enqueue(0, 1, RequestContext.local(), outcomes.append)
    assert gate.entered.wait(5)
    one.enqueue(1, 1, context, outcomes.append)
    gone[0]()
    assert isinstance(outcomes[0], Cancelled)
    assert one.queued_rows == 0
    gate.open.set()


def test_enqueue_refuses_what_is_late_or_too_much() -> None:
    gate = Gate()
    one = batcher(gate, queue_rows=2)
    outcomes: list[Any] = []
    one.enqueue(0, 1, RequestContext.local(), outcomes.append)
    assert gate.entered.wait(5)
    one.enqueue(1, 2, RequestContext.local(), outcomes.append)
    with pytest.raises(Overloaded, match="2 rows wait"):
        one.enqueue(2, 1, RequestContext.local(), outcomes.append)
    with pytest.raises(DeadlineExceeded):
        one.enqueue(3, 1, RequestContext.local(-1.0), outcomes.append)
    gate.open.set()
