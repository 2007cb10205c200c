from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from firewall.errors import Cancelled, DeadlineExceeded, Overloaded
from firewall.serve.batcher import Batcher, Queued
from firewall.serve.call import Call


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
        found = list(pool.map(lambda n: one.submit(n, 1, Call.local()), range(2000)))
    assert found == [-number for number in range(2000)]
    assert one.queued_rows == 0


def test_what_waits_is_run_together_and_in_order() -> None:
    gate = Gate()
    one = batcher(gate, batch_rows=3)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(one.submit, 0, 1, Call.local())]
        assert gate.entered.wait(5)
        for number in range(1, 6):
            futures.append(pool.submit(one.submit, number, 1, Call.local()))
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
        one.submit(number, 1, Call.local())
    gate.open.clear()
    gate.entered.clear()
    with ThreadPoolExecutor(12) as pool:
        # So many rows that each of them is quick, however long they are held up together.
        futures = [pool.submit(one.submit, 0, 100_000, Call.local())]
        assert gate.entered.wait(5)
        for number in range(1, 11):
            futures.append(pool.submit(one.submit, number, 1, Call.local()))
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
        futures = [pool.submit(one.submit, 0, 1, Call.local())]
        assert gate.entered.wait(5)
        for number in range(1, others + 1):
            futures.append(pool.submit(one.submit, number, 1, Call.local()))
            waiting(one, number)
        gate.open.set()
        for future in futures:
            with pytest.raises(RuntimeError, match="a stage ended with SystemExit"):
                future.result(5)


def test_a_full_queue_says_when_to_come_back() -> None:
    gate = Gate()
    one = batcher(gate, queue_rows=4)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(one.submit, 1, 1, Call.local())
        assert gate.entered.wait(5)
        second = pool.submit(one.submit, 2, 4, Call.local())
        waiting(one, 4)
        with pytest.raises(Overloaded, match="4 rows wait, at most 4") as caught:
            one.submit(3, 1, Call.local())
        assert caught.value.retry_after > 0
        gate.open.set()
        assert (first.result(5), second.result(5)) == (-1, -2)


def test_a_deadline_that_passes_in_the_queue_costs_no_inference() -> None:
    gate = Gate()
    one = batcher(gate)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(one.submit, 1, 1, Call.local())
        assert gate.entered.wait(5)
        with pytest.raises(DeadlineExceeded):
            one.submit(2, 1, Call.local(timeout=0.05))
        assert one.queued_rows == 0
        gate.open.set()
        assert first.result(5) == -1
    assert gate.batches == [[1]]


def test_a_deadline_that_has_passed_is_not_queued() -> None:
    with pytest.raises(DeadlineExceeded):
        batcher(lambda work: work).submit(1, 1, Call.local(timeout=-1))


def test_a_caller_who_goes_away_frees_the_slot() -> None:
    gate = Gate()
    one = batcher(gate)
    leave: list[Callable[[], None]] = []

    def register(callback: Callable[[], None]) -> bool:
        leave.append(callback)
        return True

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(one.submit, 1, 1, Call.local())
        assert gate.entered.wait(5)
        second = pool.submit(one.submit, 2, 1, Call("id", "client", None, register))
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
        first = pool.submit(one.submit, 1, 1, Call.local())
        assert gate.entered.wait(5)
        others = [pool.submit(one.submit, number, 1, Call.local()) for number in (2, 3)]
        waiting(one, 2)
        gate.open.set()
        assert first.result(5) == 1
        for other in others:
            with pytest.raises(RuntimeError, match="broken"):
                other.result(5)
    assert one.submit(4, 1, Call.local()) == 4
    assert calls == [1, 2, 1]


def test_a_batch_larger_than_the_limit_runs_alone() -> None:
    one = batcher(lambda work: work, batch_rows=2)
    assert one.submit(7, 50, Call.local()) == 7


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
        found[number] = batcher.submit(number, 1, Call.local(20.0))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == {number: 2 * number for number in range(60)}
    assert most == 2
    assert batcher.queued_rows == 0
    # Idle again: the next one runs at once.
    assert batcher.submit(7, 1, Call.local(5.0)) == 14


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
            target=lambda: found.append(one.submit(name, 1, Call.local(20.0))), name=name
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


def queued(one: Batcher[int, int], numbers: range, timeout: float | None = None) -> list[Any]:
    return [Queued(one, number, 1, Call.local(timeout)) for number in numbers]


def test_work_of_many_calls_in_one_thread_beside_others() -> None:
    one = batcher(lambda work: [-number for number in work], queue_rows=10_000)
    with ThreadPoolExecutor(8) as pool:
        many = [
            pool.submit(one.submit_all, queued(one, range(n, n + 50))) for n in range(0, 500, 50)
        ]
        single = list(pool.map(lambda n: one.submit(n, 1, Call.local()), range(500)))
    assert single == [-number for number in range(500)]
    assert [found for future in many for found in future.result()] == single
    assert one.queued_rows == 0


def test_many_wait_for_the_lane_and_then_lead() -> None:
    gate = Gate()
    one = batcher(gate)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(one.submit, 0, 1, Call.local())
        assert gate.entered.wait(5)
        many = pool.submit(one.submit_all, queued(one, range(1, 5)))
        waiting(one, 4)
        gate.open.set()
        assert first.result(10) == 0
        assert many.result(10) == [-1, -2, -3, -4]
    assert gate.batches == [[0], [1, 2, 3, 4]]


def test_of_many_what_is_late_or_too_much_is_told_so() -> None:
    gate = Gate()
    one = batcher(gate, queue_rows=3)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(one.submit, 0, 1, Call.local())
        assert gate.entered.wait(5)
        late = queued(one, range(1, 2), timeout=0.05)
        many = pool.submit(one.submit_all, [*late, *queued(one, range(2, 6))])
        waiting(one, 3)
        time.sleep(0.06)
        gate.open.set()
        first.result(10)
        found = many.result(10)
    assert isinstance(found[0], DeadlineExceeded)
    assert found[1:3] == [-2, -3]
    assert all(isinstance(error, Overloaded) for error in found[3:])
    assert gate.batches == [[0], [2, 3]]


def test_what_fails_at_once_says_nothing_of_how_long_rows_take() -> None:
    def run(work: list[int]) -> list[int | Exception]:
        if work == [13]:
            raise ValueError("13")
        if work == [14]:
            return [ValueError("14")]
        time.sleep(0.02)
        return [-number for number in work]

    one: Batcher[int, int] = Batcher(run, batch_rows=8, queue_rows=16)
    assert one.submit(1, 1, Call.local()) == -1
    for _ in range(30):
        for number in (13, 14):
            with pytest.raises(ValueError, match=str(number)):
                one.submit(number, 1, Call.local())
    assert not one.light
    assert one.most_rows == 8
