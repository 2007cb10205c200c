"""What would wait is foreseen from requests that end while others wait."""

from __future__ import annotations

import pytest

from firewall.serve.pace import Pace


def test_nothing_is_foreseen_before_anything_waited() -> None:
    pace = Pace()
    for second in range(100):
        pace.ended(0, float(second))
    assert pace.wait(1000) == 0.0


def test_under_load_the_wait_is_the_queue_times_the_interval() -> None:
    pace = Pace()
    now = 0.0
    for _ in range(400):
        # A batch of eight ends at once, every 80 ms.
        now += 0.08
        for _ in range(8):
            pace.ended(5, now)
    assert pace.wait(100) == pytest.approx(1.0, rel=0.35)


def test_quiet_hours_are_no_interval() -> None:
    pace = Pace()
    for number in range(100):
        pace.ended(5, 0.01 * number)
    pace.ended(0, 1.0)
    # An hour later; the first one since has nobody before it.
    pace.ended(5, 3600.0)
    pace.ended(5, 3600.01)
    assert pace.wait(100) == pytest.approx(1.0, rel=0.1)


def test_a_moment_in_which_nobody_waits_is_between_two_batches() -> None:
    pace = Pace()
    assert not pace.pressed(0.0)
    now = 0.0
    for _ in range(400):
        # Nobody waits when the last of a batch end: all that are left are in the next one.
        now += 0.08
        for number in range(8):
            pace.ended(number < 4, now)
    assert pace.wait(100) == pytest.approx(1.0, rel=0.35)
    assert pace.pressed(now + 0.5)
    # A load that was, and requests that never wait since.
    assert not pace.pressed(now + 2.0)
    for number in range(50):
        pace.ended(False, now + 2.0 + 0.1 * number)
        assert not pace.pressed(now + 2.0 + 0.1 * number)


def test_a_server_that_idles_between_requests_foresees_no_wait_by_that() -> None:
    """Two at a time, a tenth of a second each, every 0.8 s."""
    pace = Pace()
    for number in range(100):
        start = 0.8 * number
        pace.ended(True, start + 0.1)
        pace.ended(False, start + 0.2, last=True)
    assert pace.wait(3) == pytest.approx(0.3, rel=0.2)
