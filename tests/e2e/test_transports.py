"""Calls over our own transport, and over gRPC's: whoever asks cannot tell."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from firewall.bundle.store import Bundle
from firewall.screening.load import load_guard
from firewall.screening.policy import Policy
from firewall.screening.verdict import Answer
from firewall.serve.audit import Audit
from firewall.serve.call import TRACE_CONTEXT
from firewall.serve.grpc_transport import GrpcTransport
from firewall.serve.identity import Identity, Tokens
from firewall.serve.metrics import Metrics
from firewall.serve.models import Models
from firewall.serve.runtime import ServedModel
from firewall.serve.server import Server, Settings
from firewall.wire import open_inference_pb2 as oip
from tests.support.tiny import wire

INFER = "/inference.GRPCInferenceService/ModelInfer"
SETTINGS = Settings(host="127.0.0.1", port=0, http_port=0)


class Slow(ServedModel):
    """A guard that takes its time when it is told to."""

    def __init__(self, bundle: Bundle) -> None:
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()
        #: Requests of each batch.
        self.batches: list[int] = []
        super().__init__(
            bundle, load_guard(bundle, Policy(false_positive_rate=0.05)), metrics=Metrics(),
            audit=Audit(io.StringIO()), batch_rows=8, queue_rows=256,
        )  # fmt: skip

    def hold(self) -> None:
        """Take one's time from now on, as a guard whose batches go to threads of their own."""
        self._batcher._row_seconds = 0.1
        self.entered.clear()
        self.go.clear()

    def _run(self, work: list[Any]) -> list[Answer]:
        self.entered.set()
        assert self.go.wait(20)
        self.batches.append(len(work))
        return super()._run(work)


class Live:
    def __init__(self, tiny: Bundle, settings: Settings) -> None:
        self.model = Slow(tiny)
        self.metrics = Metrics()
        self.server = Server(Models({"tiny": self.model}), settings, self.metrics)
        self.server.start()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.server.port}")
        self.infer = self.channel.unary_unary(INFER)
        #: Closed with it.
        self.opened: list[Any] = []

    def handled(self, code: str) -> float:
        labels = {
            "grpc_type": "unary", "grpc_service": "inference.GRPCInferenceService",
            "grpc_method": "ModelInfer", "grpc_code": code,
        }  # fmt: skip
        return self.metrics.registry.get_sample_value("grpc_server_handled_total", labels) or 0.0

    def close(self) -> None:
        self.model.go.set()
        self.channel.close()
        for one in self.opened:
            one.close()
        self.server.stop(0)


@pytest.fixture(params=["http2", "grpc"])
def live(request: pytest.FixtureRequest, tiny: Bundle) -> Iterator[Live]:
    one = Live(tiny, replace(SETTINGS, transport=request.param, threads=4, backlog=4))
    yield one
    one.close()


def message(seed: int, rows: int = 1) -> bytes:
    images = wire(rows, seed)
    request = oip.ModelInferRequest(model_name="tiny")
    request.inputs.add(name="image", datatype="FP32", shape=images.shape)
    request.raw_input_contents.append(images.tobytes())
    return request.SerializeToString()


def outcome(live: Live, data: bytes) -> Any:
    """Outputs of a request, or its status."""
    try:
        answer = oip.ModelInferResponse.FromString(live.infer(data, timeout=20))
    except grpc.RpcError as error:
        return error.code()  # type: ignore[attr-defined]
    return answer.raw_output_contents[0] if answer.raw_output_contents else str(answer.outputs)


def test_many_at_once_are_answered_like_one_after_the_other(tiny: Bundle) -> None:
    live = Live(tiny, SETTINGS)
    try:
        data = [message(seed, 1 + seed % 3) for seed in range(40)]
        alone = [outcome(live, one) for one in data]
        assert len(set(alone)) > 20
        with ThreadPoolExecutor(16) as pool:
            together = list(pool.map(lambda one: outcome(live, one), data * 5))
        for number, (found, expected) in enumerate(zip(together, alone * 5, strict=True)):
            if isinstance(expected, bytes) and isinstance(found, bytes):
                # A batch may be summed in another order.
                np.testing.assert_allclose(
                    np.frombuffer(found, np.float32), np.frombuffer(expected, np.float32),
                    rtol=1e-4, atol=1e-5, err_msg=str(number),
                )  # fmt: skip
            else:
                assert found == expected
    finally:
        live.close()


def test_no_message_is_told_so(live: Live) -> None:
    call = live.channel.stream_unary(INFER)
    with pytest.raises(grpc.RpcError) as raised:
        call(iter(()), timeout=10)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert "message: is missing" in raised.value.details()  # type: ignore[attr-defined]


def test_bytes_that_are_no_message(live: Live) -> None:
    assert outcome(live, b"\xff\xff\xff") is grpc.StatusCode.INVALID_ARGUMENT
    assert live.handled("INVALID_ARGUMENT") == 1


def test_a_deadline_passes_while_the_guard_computes(live: Live) -> None:
    outcome(live, message(1))
    live.model.hold()
    with pytest.raises(grpc.RpcError) as raised:
        live.infer(message(1), timeout=0.3)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]
    live.model.go.set()
    assert not isinstance(outcome(live, message(1)), grpc.StatusCode)


def test_who_goes_away_leaves_a_place(live: Live) -> None:
    """More than there are places, twice over."""
    expected = outcome(live, message(1))
    live.model.hold()
    calls = [live.infer.future(message(1), timeout=20) for _ in range(8)]
    assert live.model.entered.wait(10)
    for call in calls:
        call.cancel()
    live.model.go.set()
    end = time.monotonic() + 10
    while not live.server._transport.boundary.idle:
        assert time.monotonic() < end
        time.sleep(0.01)
    for _ in range(8):
        assert outcome(live, message(1)) == expected


def test_more_than_there_is_room_for(live: Live) -> None:
    outcome(live, message(1))
    live.model.hold()
    calls = [live.infer.future(message(1), timeout=20) for _ in range(12)]
    refused = []
    end = time.monotonic() + 10
    while len(refused) < 4 and time.monotonic() < end:
        refused = [call for call in calls if call.done()]
        time.sleep(0.01)
    live.model.go.set()
    assert [call.code() for call in refused] == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 4
    trailing = dict(refused[0].trailing_metadata())
    assert {"x-request-id", "grpc-status-details-bin"} <= set(trailing)
    for call in calls:
        if call not in refused:
            assert call.result()
    assert live.handled("RESOURCE_EXHAUSTED") == 4


def test_an_id_of_the_clients_own_comes_back(live: Live) -> None:
    _, call = live.infer.with_call(message(1), metadata=(("x-request-id", "mine-7"),), timeout=10)
    assert ("x-request-id", "mine-7") in call.trailing_metadata()
    with pytest.raises(grpc.RpcError) as raised:
        live.infer(message(1), metadata=(("x-request-id", "no id"),), timeout=10)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]


def test_a_large_message_has_a_thread_of_its_own(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And does not hold up small ones of another model."""
    monkeypatch.setattr("firewall.serve.front._SMALL", 2 * len(message(1)))
    held, other = Slow(tiny), Slow(tiny)
    server = Server(Models({"tiny": held, "other": other}), SETTINGS, Metrics())
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            infer = channel.unary_unary(INFER)
            small = message(1).replace(b"\x04tiny", b"\x05other", 1)
            infer(message(1), timeout=10)
            infer(small, timeout=10)
            held.hold()
            large = infer.future(message(2, rows=8), timeout=20)
            assert held.entered.wait(10)
            assert infer(small, timeout=10)
            assert not large.done()
            held.go.set()
            assert large.exception() is None or large.code() is grpc.StatusCode.PERMISSION_DENIED
    finally:
        held.go.set()
        server.stop(0)


def test_a_value_that_is_none_is_its_own_requests_fault(tiny: Bundle) -> None:
    """Though values are looked at by the batch."""
    live = Live(tiny, replace(SETTINGS, max_wait=60.0))
    try:
        good = message(1)
        bad = np.frombuffer(good, np.uint8).copy()
        bad[-4:] = np.array([np.nan], "<f4").view(np.uint8)
        expected = outcome(live, good)
        outcome(live, good)
        live.model.hold()
        calls = [live.infer.future(good, timeout=20) for _ in range(2)]
        assert live.model.entered.wait(10)
        # They come to one batch: the first two have the guard meanwhile.
        calls += [
            live.infer.future(bad.tobytes() if number % 3 == 1 else good, timeout=20)
            for number in range(9)
        ]
        end = time.monotonic() + 10
        while live.model._batcher.queued_rows < 10:
            assert time.monotonic() < end
            time.sleep(0.01)
        live.model.go.set()
        for number, call in enumerate(calls):
            if number >= 2 and (number - 2) % 3 == 1:
                assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert "raw_input_contents[0]: holds NaN" in call.details()
            else:
                answer = oip.ModelInferResponse.FromString(call.result())
                assert answer.raw_output_contents[0] == expected
        assert max(live.model.batches) > 3
    finally:
        live.close()


def test_who_may_not_ask_takes_no_place_from_others(tiny: Bundle) -> None:
    """With headers alone, which is all that a call needs to take one."""
    token, line = Tokens.entry("known")
    hashed = line.split('"')[1]
    settings = replace(
        SETTINGS,
        threads=2,
        backlog=2,
        identity=Identity(Tokens({"known": hashed}), anonymous=False),
    )
    live = Live(tiny, settings)
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait(20)
        yield from ()

    try:
        stream = live.channel.stream_unary(INFER)
        for _ in range(20):
            calls = [stream.future(nothing(), timeout=10) for _ in range(4)]
            live.infer(message(1), metadata=(("authorization", f"Bearer {token}"),), timeout=5)
            assert {call.code() for call in calls} <= {
                grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED,
            }  # fmt: skip
    finally:
        over.set()
        live.close()


class Traces:
    """A tracer that remembers."""

    def __init__(self) -> None:
        self.ended: list[tuple[tuple[tuple[str, str], ...], str]] = []

    def begin(self, service: str, method: str, metadata: Mapping[str, Any]) -> Any:
        tracer = self

        class One:
            context = (("traceparent", str(metadata["traceparent"])),)

            def end(self, call: Any, code: str) -> None:
                assert call.trace == self.context
                tracer.ended.append((self.context, code))

        return One()

    def close(self) -> None:
        pass


@pytest.mark.parametrize("light", [True, False])
def test_a_trace_stays_with_its_request_whatever_thread_it_is_in(tiny: Bundle, light: bool) -> None:
    seen: list[Any] = []

    class Seeing(Slow):
        def _screened(self, work: list[Any]) -> Any:
            seen.append(TRACE_CONTEXT.get())
            if not light:
                time.sleep(0.02)
            return super()._screened(work)

    traces = Traces()
    server = Server(Models({"tiny": Seeing(tiny)}), SETTINGS, Metrics(), traces)
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            infer = channel.unary_unary(INFER)
            for number in range(5):
                infer(message(1), metadata=(("traceparent", f"t-{number}"),), timeout=10)
    finally:
        server.stop(0)
    own = [(("traceparent", f"t-{number}"),) for number in range(5)]
    assert seen == own
    assert traces.ended == [(one, "OK") for one in own]


def said(live: Live, method: str, data: bytes = b"", **options: Any) -> Any:
    """Status of a call that must fail."""
    with pytest.raises(grpc.RpcError) as raised:
        live.channel.unary_unary(method)(data, timeout=10, **options)
    return raised.value


@pytest.mark.parametrize("method", ["/inference.GRPCInferenceService/Nothing", "/a.B/C", "/", "/x"])
def test_a_method_that_is_not_there(live: Live, method: str) -> None:
    assert said(live, method).code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_compressed_message_is_not_inflated(live: Live) -> None:
    error = said(live, INFER, bytes(100_000), compression=grpc.Compression.Gzip)
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "compress" in error.details().lower()
    assert not isinstance(outcome(live, message(1)), grpc.StatusCode)


def test_a_message_of_many_windows(live: Live) -> None:
    """Whose rows are too many: it has arrived whole."""
    error = said(live, INFER, message(1, rows=2000))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "2000 rows" in error.details()


@pytest.mark.parametrize("transport", ["http2", "grpc"])
def test_a_message_that_is_too_large(tiny: Bundle, transport: Any) -> None:
    live = Live(tiny, replace(SETTINGS, transport=transport, max_message=100_000))
    try:
        assert said(live, INFER, bytes(100_001)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert not isinstance(outcome(live, message(1)), grpc.StatusCode)
    finally:
        live.close()


def test_metadata_comes_as_it_was_sent(live: Live) -> None:
    """Binary, too, and as much as there may be."""
    metadata = (("x-request-id", "one"), ("x-some-bin", bytes(range(256))), ("x-long", "v" * 5000))
    _, call = live.infer.with_call(message(1), metadata=metadata, timeout=10)
    assert ("x-request-id", "one") in call.trailing_metadata()


def test_health_and_reflection(live: Live) -> None:
    stub = health_pb2_grpc.HealthStub(live.channel)
    assert stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status == 1
    with pytest.raises(grpc.RpcError) as raised:
        stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=10)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]
    database = ProtoReflectionDescriptorDatabase(live.channel)
    assert "inference.GRPCInferenceService" in database.get_services()
    found = database.FindFileContainingSymbol("firewall.v1.FirewallService")
    assert found.service[0].name == "FirewallService"


def test_many_watch_health_and_it_is_still_told(live: Live) -> None:
    """More than there are threads for it."""
    stub = health_pb2_grpc.HealthStub(live.channel)
    watches = [stub.Watch(health_pb2.HealthCheckRequest(), timeout=30) for _ in range(20)]
    if isinstance(live.server._transport, GrpcTransport):
        # Each has a thread there, and there are eight.
        watches = watches[:7]
    assert [next(watch).status for watch in watches] == [1] * len(watches)
    live.server._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
    assert [next(watch).status for watch in watches] == [2] * len(watches)
    for watch in watches:
        watch.cancel()
    live.server._set_health(health_pb2.HealthCheckResponse.SERVING)
    assert stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status == 1


def test_who_is_being_answered_when_it_stops_is_answered(live: Live) -> None:
    expected = outcome(live, message(1))
    live.model.hold()
    call = live.infer.future(message(1), timeout=20)
    assert live.model.entered.wait(10)
    stopping = threading.Thread(target=live.server.stop, args=(10,))
    stopping.start()
    time.sleep(0.3)
    live.model.go.set()
    assert oip.ModelInferResponse.FromString(call.result()).raw_output_contents[0] == expected
    stopping.join(15)
    assert not stopping.is_alive()


def test_a_connection_that_breaks_leaves_its_places(live: Live) -> None:
    outcome(live, message(1))
    live.model.hold()
    channel = grpc.insecure_channel(
        f"127.0.0.1:{live.server.port}", (("grpc.use_local_subchannel_pool", 1),)
    )
    calls = [channel.unary_unary(INFER).future(message(1)) for _ in range(6)]
    assert live.model.entered.wait(10)
    channel.close()
    live.model.go.set()
    end = time.monotonic() + 10
    while not live.server._transport.boundary.idle:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert all(call.done() for call in calls)
    assert not isinstance(outcome(live, message(1)), grpc.StatusCode)
