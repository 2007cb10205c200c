"""Limits on requests in progress and on rates, by a clock of the test's own."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

import pytest

from firewall.errors import Overloaded
from firewall.serve.admission import Admission, AdmissionController, fair_key


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def computing(controller: AdmissionController, client: str) -> Admission:
    """Admit a request whose message has arrived."""
    admission = controller.admit(client)
    admission.received()
    return admission


def test_rate_is_counted_in_rows_and_refills() -> None:
    clock = Clock()
    controller = AdmissionController(8, rate=2.0, burst=4.0, clock=clock)
    admission = controller.admit("a")
    admission.charge(4)
    admission.release()
    with pytest.raises(Overloaded, match="more than 2 rows a second") as caught:
        controller.admit("a")
    assert caught.value.retry_after == pytest.approx(0.5)
    controller.admit("b").release()
    clock.now += 0.5
    controller.admit("a").release()
    with pytest.raises(Overloaded):
        controller.admit("a")


def test_large_batch_puts_a_client_into_debt() -> None:
    clock = Clock()
    controller = AdmissionController(8, rate=1.0, burst=2.0, clock=clock)
    admission = controller.admit("a")
    admission.charge(12)
    admission.release()
    with pytest.raises(Overloaded) as caught:
        controller.admit("a")
    assert caught.value.retry_after == pytest.approx(11.0)


def test_client_that_is_alone_may_have_every_place() -> None:
    controller = AdmissionController(4, clock=Clock())
    for _ in range(4):
        computing(controller, "only")
    with pytest.raises(Overloaded, match="4 requests are in progress"):
        controller.admit("only")


def test_places_are_shared_fairly_among_those_who_ask() -> None:
    clock = Clock()
    controller = AdmissionController(12, clock=clock)
    slow = [f"slow {number}" for number in range(4)]
    held: list[Admission] = []
    counts = Counter[str]()
    for client in slow * 12:
        try:
            held.append(computing(controller, client))
            counts[client] += 1
        except Overloaded:
            continue
    # A share for each of the four, and one that is kept for who comes next.
    assert set(counts.values()) == {2, 3}
    assert len(held) <= 10
    modest = controller.admit("modest")
    with pytest.raises(Overloaded, match="of this client"):
        controller.admit(slow[0])
    modest.release()
    for admission in held:
        admission.release()
        admission.release()
    assert controller.running == 0


def test_others_count_only_while_they_ask() -> None:
    clock = Clock()
    controller = AdmissionController(4, clock=clock)
    controller.admit("modest").release()
    computing(controller, "greedy")
    computing(controller, "greedy")
    with pytest.raises(Overloaded):
        controller.admit("greedy")
    clock.now += 1.5
    controller.admit("greedy")


def test_expected_wait_refuses_with_a_time_to_retry() -> None:
    backlog = 0.0
    controller = AdmissionController(
        64, max_wait=1.0, backlog_seconds=lambda: backlog, clock=Clock()
    )
    controller.admit("a")
    backlog = 3.0
    with pytest.raises(Overloaded, match=r"would wait 3\.0 s") as caught:
        controller.admit("a")
    assert caught.value.retry_after == 3.0


def test_wait_is_expected_from_the_pace_of_completions() -> None:
    clock = Clock()
    controller = AdmissionController(64, max_wait=1.0, clock=clock)
    held = [computing(controller, "a") for _ in range(40)]
    for admission in held[:20]:
        clock.now += 0.05
        admission.release()
    # Twenty are ahead and one ends every 50 ms.
    with pytest.raises(Overloaded, match=r"would wait 1\.6 s"):
        controller.admit("a")
    for admission in held[20:]:
        admission.release()
    controller.admit("a")


def test_pace_of_requests_whose_message_does_not_come_delays_nobody() -> None:
    clock = Clock()
    controller = AdmissionController(64, max_wait=1.0, clock=clock)
    slow = [controller.admit("slow") for _ in range(30)]
    for admission in slow[:20]:
        clock.now += 0.5
        admission.release()
    computing(controller, "quick").release()


def test_client_that_sends_no_messages_leaves_a_quarter_of_the_places() -> None:
    controller = AdmissionController(8, clock=Clock())
    silent = [controller.admit("silent") for _ in range(6)]
    with pytest.raises(Overloaded, match="6 requests of this client have not sent"):
        controller.admit("silent")
    silent[0].received()
    silent[1].release()
    controller.admit("silent")
    controller.admit("silent")


def test_silent_clients_leave_room_for_one_that_sends_its_messages() -> None:
    controller = AdmissionController(64, clock=Clock())
    controller.admit("modest").release()
    for client in ("a", "b", "c", "d"):
        with suppress(Overloaded):
            for _ in range(64):
                controller.admit(client)
    for _ in range(6):
        computing(controller, "modest")


def test_client_that_took_more_before_others_came_waits_for_its_share() -> None:
    controller = AdmissionController(16, clock=Clock())
    held = [computing(controller, "first") for _ in range(12)]
    computing(controller, "second")
    computing(controller, "second")
    # Two are free, and it has two.
    with pytest.raises(Overloaded, match="2 requests of this client"):
        controller.admit("second")
    computing(controller, "third")
    for admission in held[:8]:
        admission.release()
    computing(controller, "second")


def test_refused_request_holds_no_place() -> None:
    controller = AdmissionController(2, rate=1.0, burst=1.0, clock=Clock())
    computing(controller, "a")
    for _ in range(5):
        with pytest.raises(Overloaded):
            controller.admit("a")
    assert controller.running == 1


def test_memory_of_clients_is_bounded_and_keeps_those_with_requests() -> None:
    controller = AdmissionController(100_000, rate=1e6, burst=3.0, clock=Clock())
    held = controller.admit("stays")
    held.charge(3)
    for number in range(10_050):
        controller.admit(f"client {number}").release()
    with pytest.raises(Overloaded):
        controller.admit("stays")


@pytest.mark.parametrize(
    ("client", "key"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("token:me", "token:me"),
        ("cert:spiffe://a/b", "cert:spiffe://a/b"),
        ("unknown", "unknown"),
    ],
)
def test_ipv6_clients_are_counted_by_network(client: str, key: str) -> None:
    assert fair_key(client) == key
