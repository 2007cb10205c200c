"""Traces of a firewall and of the classifier behind it, as a collector gets them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc

from firewall.bundle.signing import Signer, user_signer
from firewall.wire import firewall_pb2 as native
from tests.e2e.test_upstream import arguments
from tests.support.peers import free_ports
from tests.support.served import call, served
from tests.support.tiny import wire

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(otlp_grpc.TraceServiceServicer):
    """Keeps every span, and the service that it came from."""

    def __init__(self) -> None:
        self._spans: list[tuple[str, Any]] = []
        self._changed = threading.Condition()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        with self._changed:
            for resource in request.resource_spans:
                [name] = [
                    one.value.string_value
                    for one in resource.resource.attributes
                    if one.key == "service.name"
                ]
                for scope in resource.scope_spans:
                    self._spans += [(name, span) for span in scope.spans]
            self._changed.notify_all()
        return otlp.ExportTraceServiceResponse()

    def of(self, trace: str, servers: int) -> list[tuple[str, Any]]:
        """A trace, once so many servers have told of their request."""

        def found() -> list[tuple[str, Any]]:
            return [one for one in self._spans if one[1].trace_id.hex() == trace]

        def told() -> bool:
            return sum(span.kind == span.SPAN_KIND_SERVER for _, span in found()) == servers

        with self._changed:
            assert self._changed.wait_for(told, 20)
            return found()


@pytest.fixture(scope="module")
def collector() -> Iterator[tuple[Collector, str]]:
    mine = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    otlp_grpc.add_TraceServiceServicer_to_server(mine, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield mine, f"http://127.0.0.1:{port}"
    server.stop(None).wait()


def ask(address: str, seed: int, **metadata: str) -> native.PredictResponse:
    x = wire(1, seed)
    tensor = native.Tensor(datatype="FP32", shape=x.shape, data=x.tobytes())
    request = native.PredictRequest(input=native.Input(tensor=tensor))
    data = call(
        address, "/firewall.v1.FirewallService/Predict", request.SerializeToString(), **metadata
    )
    return native.PredictResponse.FromString(data)


def test_a_trace_goes_through_the_firewall_to_the_classifier(
    tiny_path: Path,
    signer: Signer,
    tmp_path: Path,
    collector: tuple[Collector, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine, url = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    first, second = tmp_path / "upstream", tmp_path / "guard"
    first.mkdir()
    second.mkdir()
    with monkeypatch.context() as named:
        named.setenv("OTEL_SERVICE_NAME", "the classifier")
        upstream_server = served(tiny_path, signer, first, "--mode", "off", "--traces")
        upstream = upstream_server.__enter__()
    try:
        to = f"grpc://{upstream.address}/tiny"
        done = subprocess.run(
            [sys.executable, "-m", "firewall", *arguments(to, tmp_path)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        with served(
            tmp_path / "bundle", user_signer(), second,
            "--upstream", to, "--false-positive-rate", "0.05", "--traces",
        ) as guard:  # fmt: skip
            parent = f"00-{TRACE}-{PARENT}-01"
            answer = ask(guard.address, 50, traceparent=parent)
            spans = mine.of(TRACE, 2)
    finally:
        upstream_server.__exit__(None, None, None)
    ours = {span.name: span for service, span in spans if service == "robustness-firewall"}
    theirs = {span.name: span for service, span in spans if service == "the classifier"}
    whole = ours["firewall.v1.FirewallService/Predict"]
    assert whole.parent_span_id.hex() == PARENT
    told = {one.key: one.value for one in whole.attributes}
    assert told["firewall.request_id"].string_value == answer.request_id
    assert told["rpc.grpc.status_code"].int_value == 0
    stages = {name: span for name, span in ours.items() if span is not whole}
    assert set(stages) >= {"decode", "queue", "guard", "cheap", "upstream"}
    for span in stages.values():
        assert span.parent_span_id == whole.span_id
        assert (
            whole.start_time_unix_nano
            <= span.start_time_unix_nano
            <= span.end_time_unix_nano
            <= whole.end_time_unix_nano
        )
    asked = theirs["inference.GRPCInferenceService/ModelInfer"]
    assert asked.parent_span_id == whole.span_id


def test_a_collector_that_is_down_delays_nothing(
    tiny_path: Path, signer: Signer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [port] = free_ports(1)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with served(tiny_path, signer, tmp_path, "--traces") as server:
        for seed in range(5):
            assert len(ask(server.address, seed).predictions) == 1
        assert server.terminate() == 0
