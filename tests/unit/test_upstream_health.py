"""When a served classifier counts as up: readiness, and a self-test that is repeated."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest

from firewall.bundle.spec import GuardSpec, ScoreSpec, StageSpec
from firewall.errors import NotReady, Overloaded, ParityError, UpstreamError
from firewall.guard.assemble import assemble
from firewall.guard.compile import compile_split
from firewall.screening.classifier import SeparateClassifier
from firewall.screening.scores import Scores
from firewall.screening.selftest import SelfTest, same_classifier
from firewall.screening.split import SplitGuard
from firewall.stages.registry import Registry
from firewall.upstream.client import Upstream
from firewall.upstream.health import UpstreamHealth
from firewall.upstream.settings import UpstreamSettings
from tests.support.tiny import CLASSES, INPUT, wire
from tests.support.upstream_servers import Model, grpc_server, rest_server

SERVERS = {
    "grpc": grpc_server,
    "rest": rest_server,
    "rest-json": partial(rest_server, binary="none"),
}


class Classifier:
    """A remote classifier that is ready or not."""

    def __init__(self) -> None:
        self.is_ready = True
        self.closed = False

    def ready(self) -> bool:
        return self.is_ready

    def infer(self, wire: np.ndarray, deadline: float | None) -> np.ndarray:
        raise AssertionError

    def close(self) -> None:
        self.closed = True


class Check:
    """A self-test that counts, and fails as a test wants."""

    def __init__(self) -> None:
        self.runs = 0
        self.error: Exception | None = None

    def __call__(self) -> None:
        self.runs += 1
        if self.error is not None:
            raise self.error


@pytest.fixture
def check() -> Check:
    return Check()


def test_the_self_test_runs_when_it_comes_up_and_every_minute(check: Check) -> None:
    now = [0.0]
    classifier = Classifier()
    health = UpstreamHealth(classifier, check, clock=lambda: now[0])
    assert not health.up
    for second in range(130):
        now[0] = float(second)
        health.look()
        assert health.up
    assert check.runs == 3
    classifier.is_ready = False
    health.look()
    assert not health.up
    classifier.is_ready = True
    health.look()
    assert health.up
    assert check.runs == 4


def test_a_model_that_was_reloaded_in_place_is_down_and_logged_once(
    check: Check, caplog: pytest.LogCaptureFixture
) -> None:
    health = UpstreamHealth(Classifier(), check, check_period=0.0)
    health.look()
    assert health.up
    check.error = UpstreamError("upstream: answers 2 classes; calibrated with 10")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            health.look()
            assert not health.up
    assert caplog.text.count("upstream not ready: answers 2 classes; calibrated with 10") == 1
    check.error = None
    health.look()
    assert health.up


@pytest.mark.parametrize("error", [Overloaded("busy", 1.0), NotReady("breaker")])
def test_a_busy_server_stays_in_use_and_does_not_come_up(error: Exception, check: Check) -> None:
    health = UpstreamHealth(Classifier(), check, check_period=0.0)
    check.error = error
    health.look()
    assert not health.up
    check.error = None
    health.look()
    check.error = error
    health.look()
    assert health.up


def test_an_unexpected_error_is_down_and_never_raised(
    check: Check, caplog: pytest.LogCaptureFixture
) -> None:
    health = UpstreamHealth(Classifier(), check)
    check.error = ZeroDivisionError("no")
    with caplog.at_level(logging.WARNING):
        health.start()
        health.look()
    assert not health.up
    assert caplog.text.count("upstream not ready: ZeroDivisionError") == 1
    assert "Traceback" in caplog.text
    health.stop()


def test_it_looks_in_the_background_until_it_is_stopped(check: Check) -> None:
    classifier = Classifier()
    health = UpstreamHealth(classifier, check, period=0.01)
    classifier.is_ready = False
    health.start()
    assert not health.up
    classifier.is_ready = True
    for _ in range(500):
        if health.up:
            break
        time.sleep(0.01)
    assert health.up
    health.stop()
    assert classifier.closed


@pytest.fixture(scope="module")
def guard_around() -> Callable[[SeparateClassifier], SplitGuard]:
    """Puts a guard with one view around a classifier of ten classes."""
    stages = GuardSpec(
        stages=(
            StageSpec(kind="denoiser", name="blur", plugin="gaussian-blur"),
            StageSpec(kind="detector", name="views", plugin="view-consistency"),
        )
    )
    graphs = compile_split(assemble(stages, Registry.discover(), None), INPUT, CLASSES, {})
    known = Scores(ScoreSpec(), (CLASSES,), CLASSES)
    return lambda classifier: SplitGuard(graphs, classifier, INPUT, known)


@contextmanager
def served(transport: str, model: Model) -> Iterator[Upstream]:
    with SERVERS[transport](model) as running:  # type: ignore[operator]
        client = Upstream(UpstreamSettings.parse(running.url), input_name="image", output="logits")
        yield client
        client.close()


def scores(classes: int, factor: float = 1.0) -> Callable[[np.ndarray], np.ndarray]:
    def answer(x: np.ndarray) -> np.ndarray:
        flat = x.reshape(len(x), -1)[:, :classes]
        return np.ascontiguousarray(flat * np.float32(factor))

    return answer


@pytest.mark.parametrize("transport", sorted(SERVERS))
def test_another_model_in_place_is_not_ready_and_says_why(
    transport: str,
    guard_around: Callable[[SeparateClassifier], SplitGuard],
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Model(answer=scores(CLASSES))
    with served(transport, model) as client, caplog.at_level(logging.WARNING):
        guard = guard_around(client)
        stored = SelfTest.record(guard, wire(2, 0))
        health = UpstreamHealth(client, lambda: same_classifier(stored, guard), check_period=0.0)
        health.look()
        assert health.up
        for answer, words in (
            (scores(2), "answers 2 classes; calibrated with 10"),
            (scores(CLASSES + 1), "answers 11 classes; calibrated with 10"),
            (lambda x: np.zeros((len(x), 1, CLASSES), np.float32), "answers [1, 10] a row"),
            (lambda x: np.zeros(CLASSES, np.float32), "answers [10] for 2 rows"),
            (lambda x: np.zeros((1, CLASSES), np.float32), "answers [1, 10] for 2 rows"),
            (lambda x: np.zeros((len(x), 0), np.float32), "answers 0 classes; calibrated with 10"),
            (scores(CLASSES, 3.0), "answers other than the classifier"),
        ):
            model.answer = answer
            health.look()
            assert not health.up
            assert f"upstream not ready: {words}" in caplog.text
            model.answer = scores(CLASSES)
            health.look()
            assert health.up


def test_a_request_meanwhile_fails_with_a_sentence(
    guard_around: Callable[[SeparateClassifier], SplitGuard],
) -> None:
    model = Model(answer=scores(2))
    with served("rest", model) as client:
        guard = guard_around(client)
        with pytest.raises(UpstreamError, match="answers 2 classes; calibrated with 10"):
            guard.cheap(wire(3, 0))
        stored = SelfTest(
            wire(2, 0), np.zeros((2, CLASSES), np.float32), np.zeros((2, 1), np.float32),
            np.empty((0, 2), np.float32), np.zeros((4, CLASSES), np.float32),
        )  # fmt: skip
        model.answer = scores(CLASSES)
        with pytest.raises(ParityError, match="make a guard of this classifier"):
            same_classifier(stored, guard)
