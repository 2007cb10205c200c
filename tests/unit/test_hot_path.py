"""What one request makes the server do, counted."""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Iterator
from types import FrameType
from typing import Any

import numpy as np
import pytest

from firewall.bundle.store import Bundle
from firewall.screening.load import load_guard
from firewall.screening.policy import Policy
from firewall.serve.audit import Audit
from firewall.serve.call import Call
from firewall.serve.codec import Limits
from firewall.serve.metrics import Metrics
from firewall.serve.models import Models
from firewall.serve.runtime import ServedModel
from firewall.serve.services import OpenInferenceService
from firewall.wire import open_inference_pb2 as oip
from tests.support.tiny import wire


class Counting:
    """An onnxruntime session that counts."""

    def __init__(self, session: Any, name: str, runs: Counter[str]) -> None:
        self._session, self._name, self._runs = session, name, runs

    def run(self, *arguments: Any) -> Any:
        self._runs[self._name] += 1
        return self._session.run(*arguments)


class Served:
    def __init__(self, tiny: Bundle) -> None:
        metrics = Metrics()
        guard = load_guard(tiny, Policy(false_positive_rate=0.05))
        compiled: Any = guard.compiled
        self.runs: Counter[str] = Counter()
        tiers = compiled._tiers
        tiers._cheap = Counting(tiers._cheap, "cheap", self.runs)
        tiers._expensive = Counting(tiers._expensive, "expensive", self.runs)
        self.audit = Audit(io.StringIO())
        model = ServedModel(
            tiny, guard, metrics=metrics, audit=self.audit, batch_rows=8, queue_rows=64
        )
        model.self_test()
        self.service = OpenInferenceService(Models({"tiny": model}), Limits())
        self.guard = guard

    def plain(self) -> np.ndarray:
        """A row that the cheap tier accepts."""
        for seed in range(100):
            row = wire(1, seed)
            [decision] = self.guard.screen(row, [self.guard.plan("")]).decisions
            if decision.verdict.value == "accept" and not decision.escalated:
                return row
        raise AssertionError("every row is doubted")


@pytest.fixture(scope="module")
def served(tiny: Bundle) -> Iterator[Served]:
    one = Served(tiny)
    yield one
    one.audit.close()


def message(row: np.ndarray) -> bytes:
    request = oip.ModelInferRequest(model_name="tiny")
    request.inputs.add(name="image", datatype="FP32", shape=row.shape)
    request.raw_input_contents.append(row.tobytes())
    return request.SerializeToString()


def test_a_clean_row_is_one_pass(served: Served) -> None:
    data = message(served.plain())
    served.service.model_infer(data, Call.local())
    served.runs.clear()
    for _ in range(5):
        served.service.model_infer(data, Call.local())
    assert served.runs == {"cheap": 5}


def test_a_request_is_few_calls_of_python(served: Served) -> None:
    """Of ours, numpy's and onnxruntime's."""
    data = message(served.plain())
    for _ in range(3):
        served.service.model_infer(data, Call.local())
    calls: Counter[str] = Counter()

    def see(frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            calls[event] += 1

    call = Call.local()
    sys.setprofile(see)
    try:
        served.service.model_infer(data, call)
    finally:
        sys.setprofile(None)
    # 112 and 120 when this was written.
    assert calls["call"] <= 125
    assert calls["c_call"] <= 140


def test_a_known_header_is_not_parsed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    row = served.plain()
    served.service.model_infer(message(row), Call.local())
    monkeypatch.setattr(
        "firewall.serve.services.parsed", lambda *_: pytest.fail("it was parsed again")
    )
    answer = oip.ModelInferResponse.FromString(
        served.service.model_infer(message(row), Call.local())
    )
    assert answer.outputs[0].shape == [1, 10]


def test_rows_that_are_large_are_a_pass_each_and_say_the_same(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: Any = served.guard.compiled
    batch, rows = wire(5, 3), np.array([0, 2, 3])
    cheap = compiled.cheap(batch)
    whole = compiled.expensive(batch, cheap, rows)
    monkeypatch.setattr(compiled, "rows_at_once", 2)
    served.runs.clear()
    parts = compiled.cheap(batch)
    split = compiled.expensive(batch, parts, rows)
    assert served.runs == {"cheap": 3, "expensive": 2}
    np.testing.assert_allclose(parts.logits, cheap.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(parts.statistics, cheap.statistics, rtol=1e-4, atol=1e-5)
    for one, other in (
        (split.log_probabilities, whole.log_probabilities),
        (split.statistics, whole.statistics),
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
