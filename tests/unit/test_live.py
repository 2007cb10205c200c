"""The decision, with graphs that fail in every way a plugin can."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from firewall.bundle.store import Bundle
from firewall.errors import ConfigError, SampleTooSmall
from firewall.screening.compiled import CheapResult, CompiledGuard, ExpensiveResult
from firewall.screening.live import LiveGuard
from firewall.screening.load import load_guard
from firewall.screening.policy import Policy
from firewall.screening.scores import log_softmax
from firewall.screening.verdict import Answer, Verdict
from tests.support.tiny import forged, wire


class Broken(CompiledGuard):
    """A compiled guard whose answers can be spoilt."""

    def __init__(self, graphs: Any) -> None:
        super().__init__(graphs)
        self.spoil: str = ""
        self.expensive_rows: list[int] = []

    def cheap(self, wire: Any, deadline: float | None = None) -> CheapResult:
        found = super().cheap(wire)
        if self.spoil == "cheap statistic":
            found.statistics[1, 0] = np.nan
        if self.spoil == "logits":
            found.logits[1, 3] = np.inf
        return found

    def expensive(self, wire: Any, cheap: CheapResult, rows: Any) -> ExpensiveResult:
        self.expensive_rows += [int(row) for row in rows]
        if self.spoil == "expensive raises":
            raise RuntimeError("a stage failed")
        found = super().expensive(wire, cheap, rows)
        if self.spoil == "expensive statistic":
            found.statistics[0, 0] = np.inf
        return found


@pytest.fixture
def broken(tiny: Bundle) -> Broken:
    return Broken(tiny.files)


def live(tiny: Bundle, compiled: CompiledGuard, **policy: Any) -> LiveGuard:
    policy = {"false_positive_rate": 0.05} | policy
    sound = load_guard(tiny, Policy(**policy))
    return LiveGuard(compiled, sound.calibration, sound.policy, model="tiny", log_outputs=True)


def screen(guard: LiveGuard, batch: np.ndarray, client: str = "c") -> Answer:
    return guard.screen(batch, [guard.plan(client) for _ in batch])


def mixed() -> np.ndarray:
    """Two clean rows around two forged ones."""
    return np.concatenate([wire(1, 20), forged(2), wire(1, 21)])


def test_forged_rows_are_rejected_with_reasons_and_clean_ones_answered(
    tiny: Bundle, broken: Broken
) -> None:
    answer = screen(live(tiny, broken), mixed())
    verdicts = [one.verdict for one in answer.decisions]
    assert verdicts == [Verdict.ACCEPT, Verdict.REJECT, Verdict.REJECT, Verdict.ACCEPT]
    assert "noise-floor" in answer.decisions[1].reasons
    assert answer.decisions[1].p_value == pytest.approx(1 / 121)
    assert answer.decisions[0].reasons == ()
    assert np.allclose(np.exp(answer.outputs).sum(axis=1), 1, atol=1e-4)


def test_the_expensive_tier_runs_for_the_doubtful_alone(tiny: Bundle, broken: Broken) -> None:
    answer = screen(live(tiny, broken), mixed())
    assert broken.expensive_rows == [n for n, one in enumerate(answer.decisions) if one.escalated]
    assert {1, 2} <= set(broken.expensive_rows)
    assert len(broken.expensive_rows) < 4


def test_a_row_is_decided_alike_alone_and_among_others(tiny: Bundle, broken: Broken) -> None:
    guard = live(tiny, broken)
    batch = np.concatenate([wire(9, 30), forged(1)])
    whole = screen(guard, batch)
    for number in range(len(batch)):
        alone = screen(guard, batch[number : number + 1])
        assert alone.decisions[0].verdict is whole.decisions[number].verdict
        assert alone.decisions[0].p_value == whole.decisions[number].p_value
        assert np.allclose(alone.outputs[0], whole.outputs[number], atol=1e-4)


def test_monitor_flags_and_off_does_not_screen(tiny: Bundle, broken: Broken) -> None:
    flagged = screen(live(tiny, broken, mode="monitor"), mixed())
    assert [one.verdict for one in flagged.decisions][1] is Verdict.FLAG
    broken.expensive_rows.clear()
    off = screen(live(tiny, broken, mode="off"), mixed())
    assert {one.verdict for one in off.decisions} == {Verdict.ACCEPT}
    assert {one.p_value for one in off.decisions} == {None}
    assert broken.expensive_rows == []


def test_sampling_nothing_screens_nothing(tiny: Bundle, broken: Broken) -> None:
    answer = screen(live(tiny, broken, sample=0), forged(20))
    assert {one.verdict for one in answer.decisions} == {Verdict.ACCEPT}


def test_sampling_half_screens_about_half(tiny: Bundle, broken: Broken) -> None:
    answer = screen(live(tiny, broken, sample=50), forged(400))
    rejected = sum(one.verdict is Verdict.REJECT for one in answer.decisions)
    # Ten standard deviations of a fair coin.
    assert 100 < rejected < 300


@pytest.mark.parametrize(
    "spoil", ["cheap statistic", "logits", "expensive statistic", "expensive raises"]
)
@pytest.mark.parametrize(
    ("mode", "on_fault", "verdict"),
    [
        ("enforce", "reject", Verdict.REJECT),
        ("enforce", "accept", Verdict.ACCEPT),
        ("monitor", "reject", Verdict.FLAG),
    ],
)
def test_a_fault_is_what_the_policy_says_and_never_an_absence(
    spoil: str, mode: str, on_fault: str, verdict: Verdict, tiny: Bundle, broken: Broken
) -> None:
    broken.spoil = spoil
    answer = screen(live(tiny, broken, mode=mode, on_fault=on_fault), mixed())
    assert len(answer.decisions) == 4
    faulted = [one for one in answer.decisions if one.fault]
    assert faulted
    assert {one.verdict for one in faulted} == {verdict}
    assert {one.p_value for one in faulted} == {None}


def test_a_failing_cheap_tier_is_an_error_and_not_an_answer(tiny: Bundle, broken: Broken) -> None:
    with pytest.raises(Exception, match="input"):
        screen(live(tiny, broken), np.zeros((1, 3, 8, 8), np.float32))


def test_a_broken_detector_can_be_excluded(tiny: Bundle, broken: Broken) -> None:
    broken.spoil = "cheap statistic"
    exclusion = {"id": "e", "detector": "feature-norm"}
    answer = screen(live(tiny, broken, exclusions=[exclusion]), mixed())
    assert not any(one.fault for one in answer.decisions)


def test_paranoia_one_never_runs_the_views(tiny: Bundle, broken: Broken) -> None:
    answer = screen(live(tiny, broken, paranoia=1), mixed())
    assert answer.decisions[1].verdict is Verdict.REJECT
    assert broken.expensive_rows == []


def test_an_exclusion_leaves_its_detector_out_for_that_client_alone(
    tiny: Bundle, broken: Broken
) -> None:
    exclusion = {"id": "e", "client": "friend", "detector": "noise-floor"}
    guard = live(tiny, broken, exclusions=[exclusion])
    friend = screen(guard, forged(1), "friend").decisions[0]
    stranger = screen(guard, forged(1), "stranger").decisions[0]
    assert "noise-floor" not in friend.statistics
    assert "noise-floor" in stranger.statistics
    both = guard.screen(forged(2), [guard.plan("friend"), guard.plan("stranger")])
    assert ["noise-floor" in one.statistics for one in both.decisions] == [False, True]


@pytest.mark.parametrize(
    ("policy", "error", "words"),
    [
        ({"paranoia": 3}, ConfigError, "needs a second network"),
        ({"paranoia": 4}, ConfigError, "certificates"),
        ({"false_positive_rate": 0.001}, SampleTooSmall, "999"),
        (
            {"exclusions": [{"id": "e7", "detector": "nothing"}]},
            ConfigError,
            "'e7': detector 'nothing' is not in this bundle",
        ),
    ],
)
def test_a_policy_that_cannot_be_kept_is_refused(
    policy: dict[str, Any], error: type[Exception], words: str, tiny: Bundle
) -> None:
    with pytest.raises(error, match=words):
        load_guard(tiny, Policy(**policy))


def test_rounded_probabilities_are_within_what_they_say(tiny: Bundle) -> None:
    """A thousand classes, so that a floor under each would add up."""
    guard = live(tiny, CompiledGuard(tiny.files), outputs="rounded")
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((200, 1000)) * rng.uniform(0, 6, (200, 1))
    true = np.exp(log_softmax(logits.astype(np.float32)))
    answered = np.exp(guard._harden(np.log(true)))
    assert np.abs(answered - true).max() <= 0.01
    assert np.array_equal(answered.argmax(1), true.argmax(1))
    assert np.allclose(answered.sum(1), 1, atol=1e-3)


@pytest.mark.parametrize("outputs", ["rounded", "label"])
def test_hardened_outputs_keep_the_top_class_and_tell_less(
    outputs: str, tiny: Bundle, broken: Broken
) -> None:
    batch = wire(50, 40)
    full = screen(live(tiny, broken, mode="monitor"), batch).outputs
    hard = screen(live(tiny, broken, mode="monitor", outputs=outputs), batch).outputs
    assert np.array_equal(full.argmax(axis=1), hard.argmax(axis=1))
    assert np.allclose(np.exp(hard).sum(axis=1), 1, atol=1e-4)
    distinct = len(np.unique(np.round(hard, 5)))
    assert distinct < len(np.unique(np.round(full, 5))) / 2
    if outputs == "label":
        assert distinct == 2
