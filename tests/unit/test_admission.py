"""Shares and rates of clients, by a clock of the test's own."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from firewall.errors import Overloaded
from firewall.serve.admission import Admission


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_empties_and_fills() -> None:
    clock = Clock()
    admission = Admission(8, rate=2.0, burst=3.0, clock=clock)
    for _ in range(3):
        with admission.enter("a"):
            pass
    with pytest.raises(Overloaded, match="more than 2 requests a second") as caught:
        admission.enter("a").__enter__()
    assert caught.value.retry_after == pytest.approx(0.5)
    with admission.enter("b"):
        pass
    clock.now += 0.5
    with admission.enter("a"):
        pass
    with pytest.raises(Overloaded):
        admission.enter("a").__enter__()


def test_one_client_alone_may_have_everything_and_half_while_another_asks() -> None:
    clock = Clock()
    admission = Admission(4, clock=clock)
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(admission.enter("greedy"))
        with admission.enter("modest"):
            pass
        with pytest.raises(Overloaded, match="4 requests of this client"):
            stack.enter_context(admission.enter("greedy"))
        # Who has not asked for a while does not wait.
        clock.now += 1.5
        stack.enter_context(admission.enter("greedy"))
        stack.enter_context(admission.enter("modest"))
        stack.enter_context(admission.enter("modest"))
        with pytest.raises(Overloaded):
            stack.enter_context(admission.enter("modest"))
    # Everything was given back.
    with admission.enter("modest"), admission.enter("modest"):
        pass


def test_a_refused_request_holds_no_place() -> None:
    admission = Admission(2, rate=1.0, burst=1.0, clock=Clock())
    with admission.enter("a"):
        for _ in range(5):
            with pytest.raises(Overloaded):
                admission.enter("a").__enter__()
    with admission.enter("b"), pytest.raises(Overloaded):
        admission.enter("b").__enter__()


def test_many_names_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firewall.serve.admission._CLIENTS", 10)
    admission = Admission(4, clock=Clock())
    with admission.enter("stays"):
        for number in range(100):
            with admission.enter(f"client {number}"):
                pass
        assert len(admission._clients) <= 11
        # It was not forgotten while it ran: its second request is its second.
        with admission.enter("stays"), pytest.raises(Overloaded):
            admission.enter("stays").__enter__()
