"""What an operator sees: health, reflection, metrics, audit log, start and stop."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from prometheus_client.parser import text_string_to_metric_families

from firewall.bundle.signing import Signer
from firewall.bundle.store import Bundle
from firewall.client import Client
from firewall.errors import FirewallError, NotReady, Overloaded
from firewall.screening.verdict import Verdict
from firewall.serve.audit import Audit
from firewall.serve.grpc_health import MAX_WATCHES
from firewall.serve.server import Server
from tests.support.in_process import held_model, make_server, started
from tests.support.served import FREE_PORTS, Served, served
from tests.support.tiny import build_tiny, forged, wire


def get(server: Served, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.operations_port}{path}") as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def health(address: str, service: str = "") -> str:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        status = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status
        return health_pb2.HealthCheckResponse.ServingStatus.Name(status)


def test_http_probes(server: Served) -> None:
    assert get(server, "/healthz") == (200, "ok\n")
    assert get(server, "/readyz") == (200, "ready\n")
    assert get(server, "/secret")[0] == 404


def test_health_over_grpc(server: Served) -> None:
    for service in ("", "firewall.v1.FirewallService", "inference.GRPCInferenceService"):
        assert health(server.address, service) == "SERVING"


def test_reflection_describes_every_service(server: Served) -> None:
    with grpc.insecure_channel(server.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert set(database.get_services()) == {
            "firewall.v1.FirewallService",
            "inference.GRPCInferenceService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        pool = DescriptorPool(database)
        service = pool.FindServiceByName("inference.GRPCInferenceService")
        assert "ModelInfer" in service.methods_by_name
        assert pool.FindServiceByName("firewall.v1.FirewallService").methods_by_name["Predict"]


def test_metrics_count_what_happened(server: Served) -> None:
    def read() -> dict[tuple[str, str], float]:
        families = text_string_to_metric_families(get(server, "/metrics")[1])
        return {
            (
                sample.name,
                ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items())),
            ): sample.value
            for family in families
            for sample in family.samples
        }

    before = read()
    with Client(server.address) as client:
        client.predict(np.concatenate([wire(1, 20), forged(2)]))
        with pytest.raises(FirewallError):
            client.predict(np.zeros((1, 1, 1, 1), np.float32))
    after = read()

    def grown(name: str, labels: str) -> float:
        return after.get((name, labels), 0) - before.get((name, labels), 0)

    rpc = "grpc_method=Predict,grpc_service=firewall.v1.FirewallService,grpc_type=unary"
    assert grown("grpc_server_started_total", rpc) == 2
    assert grown("grpc_server_handling_seconds_count", rpc) == 2
    assert grown("grpc_server_handled_total", f"grpc_code=OK,{rpc}") == 1
    assert grown("grpc_server_handled_total", f"grpc_code=INVALID_ARGUMENT,{rpc}") == 1
    assert grown("firewall_rows_total", "model=tiny,verdict=accept") == 1
    assert grown("firewall_rows_total", "model=tiny,verdict=reject") == 2
    assert grown("firewall_reasons_total", "detector=noise-floor,model=tiny") == 2
    buckets = [key[1] for key in after if key[0] == "firewall_p_value_rows_total"]
    assert sum(grown("firewall_p_value_rows_total", labels) for labels in buckets) == 3
    assert not any("p_value" in name and name.endswith("_sum") for name, _ in after)
    assert after["firewall_ready", ""] == 1
    assert after["firewall_queue_rows", "model=tiny"] == 0
    info = [key for key in after if key[0] == "firewall_bundle_info"]
    assert "provider=CPUExecutionProvider" in info[0][1]


def test_the_audit_log_has_the_refused_with_their_scores_and_not_the_accepted(
    server: Served,
) -> None:
    with Client(server.address) as client:
        client.predict(np.concatenate([wire(1, 20), forged(1)]), request_id="audited-1")
    [event] = [one for one in server.events() if one.get("request_id") == "audited-1"]
    assert event["event"] == "verdict"
    assert (event["row"], event["verdict"], event["model"]) == (1, "reject", "tiny")
    assert event["client"] == "127.0.0.1"
    assert event["p_value"] == pytest.approx(1 / 121)
    assert set(event["statistics"]) == {"feature-norm", "noise-floor", "view-consistency"}
    assert event["policy"]


def test_monitor_mode_and_diagnostics(tiny_path: Path, signer: Signer, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('mode = "monitor"\ndisclose = "diagnostics"\nfalse_positive_rate = 0.05\n')
    with (
        served(tiny_path, signer, tmp_path, "--policy", str(policy)) as running,
        Client(running.address) as client,
    ):
        [found] = client.predict(forged(1))
        assert found.verdict is Verdict.FLAG
        assert found.labels
        assert found.p_value == pytest.approx(1 / 121)
        assert "view-consistency" in found.statistics


def test_two_bundles_by_name(tiny_path: Path, signer: Signer, tmp_path: Path) -> None:
    other = build_tiny(tmp_path / "other", signer, name="other")
    with served(
        tiny_path, signer, tmp_path, str(other), "--false-positive-rate", "0.05"
    ) as running:
        for name in ("tiny", "other"):
            with Client(running.address, model=name) as client:
                assert client.describe().model == name
                assert client.predict(forged(1))[0].verdict is Verdict.REJECT
        with Client(running.address) as client, pytest.raises(FirewallError, match="''"):
            client.predict(forged(1))


def test_sigterm_answers_what_runs_and_ends_with_zero(
    tiny_path: Path, signer: Signer, tmp_path: Path
) -> None:
    """Clients hammer it while it stops: each request is answered or turned away, none is lost."""
    outcomes: list[str] = []
    stop = threading.Event()
    first = threading.Event()

    with served(tiny_path, signer, tmp_path, "--false-positive-rate", "0.05") as running:

        def hammer() -> None:
            with Client(running.address, timeout=20) as client:
                while not stop.is_set():
                    try:
                        client.predict(wire(4, 20))
                        outcomes.append("answered")
                        first.set()
                    except NotReady:
                        outcomes.append("turned away")
                        return
                    except FirewallError as error:
                        outcomes.append(repr(error))
                        return

        threads = [threading.Thread(target=hammer) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert first.wait(20)
        code = running.terminate()
        stop.set()
        for thread in threads:
            thread.join(20)
        assert code == 0
        assert set(outcomes) <= {"answered", "turned away"}
        assert [event["event"] for event in running.events()][-2:] == ["draining", "stopped"]


# --- in this process, where work can be held -----------------------------------------------------


def address(server: Server) -> str:
    return f"127.0.0.1:{server.grpc_port}"


def test_not_serving_until_the_self_test_has_passed(tiny: Bundle) -> None:
    model = held_model(tiny)
    model.held.work.set()
    server = make_server(model)
    thread = threading.Thread(target=server.start)
    thread.start()
    try:
        assert health(address(server)) == "NOT_SERVING"
        assert not server.ready()
        with Client(address(server)) as client:
            with pytest.raises(NotReady, match="has not passed its self-test"):
                client.predict(wire(1, 20))
            model.test.set()
            thread.join(20)
            assert health(address(server)) == "SERVING"
            assert client.predict(wire(1, 20))
    finally:
        model.test.set()
        thread.join(20)
        server.stop(0)


def test_stop_waits_for_work_and_refuses_new_requests(tiny: Bundle) -> None:
    model = held_model(tiny)
    answers: list[object] = []
    with started(model) as server, Client(address(server)) as client:
        asking = threading.Thread(target=lambda: answers.extend(client.predict(wire(1, 20))))
        asking.start()
        assert model.held.working.wait(10)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        while server.ready():
            threading.Event().wait(0.01)
        with (
            Client(address(server), timeout=5) as late,
            pytest.raises(NotReady, match="shutting down"),
        ):
            late.predict(wire(1, 20))
        model.held.work.set()
        asking.join(20)
        stopping.join(20)
    assert len(answers) == 1


def test_deadline_is_kept_and_costs_no_inference(tiny: Bundle) -> None:
    model = held_model(tiny)
    with (
        started(model) as server,
        Client(address(server)) as client,
        Client(address(server), timeout=0.3) as hasty,
    ):
        asking = threading.Thread(target=client.predict, args=(wire(1, 20),))
        asking.start()
        assert model.held.working.wait(10)
        with pytest.raises(FirewallError, match=r"(?i)deadline"):
            hasty.predict(wire(1, 20))
        # The server's clock of that deadline may be some milliseconds behind the client's.
        for _ in range(200):
            if not model.queued_rows:
                break
            threading.Event().wait(0.02)
        model.held.work.set()
        asking.join(20)
    assert model.held.batches == [1]


def test_requests_beyond_the_limit_are_refused_and_health_still_answers(tiny: Bundle) -> None:
    model = held_model(tiny)
    outcomes: list[str] = []
    with started(model, max_requests=4) as server:

        def ask() -> None:
            with Client(address(server), timeout=20) as client:
                try:
                    client.predict(wire(1, 20))
                    outcomes.append("answered")
                except Overloaded as error:
                    assert error.retry_after > 0
                    outcomes.append("overloaded")

        threads = [threading.Thread(target=ask) for _ in range(10)]
        for thread in threads:
            thread.start()
        for _ in range(500):
            if outcomes.count("overloaded") == 6:
                break
            threading.Event().wait(0.02)
        assert outcomes == ["overloaded"] * 6
        assert health(address(server)) == "SERVING"
        model.held.work.set()
        for thread in threads:
            thread.join(20)
    assert sorted(outcomes) == ["answered"] * 4 + ["overloaded"] * 6


def test_client_that_watches_health_does_not_hold_up_a_stop(tiny: Bundle) -> None:
    with (
        started(held_model(tiny), grace=60) as server,
        grpc.insecure_channel(address(server)) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        # Far below the grace of a minute; a stop that waited for the stream would take it.
        stopping.join(20)
        assert not stopping.is_alive()


def test_more_watches_than_the_limit_are_unimplemented(tiny: Bundle) -> None:
    """Which tells a client to stop checking health, and to go on asking."""
    with started(held_model(tiny)) as server, ExitStack() as stack:
        watches = []
        for _ in range(MAX_WATCHES):
            channel = stack.enter_context(grpc.insecure_channel(address(server)))
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            watches.append(watch)
        channel = stack.enter_context(grpc.insecure_channel(address(server)))
        with pytest.raises(grpc.RpcError) as caught:
            next(health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert health(address(server)) == "SERVING"


def test_padded_latency_hides_how_long_screening_took(tiny: Bundle) -> None:
    model = held_model(tiny)
    model.held.work.set()
    with started(model, pad_latency=0.3) as server, Client(address(server)) as client:
        for batch in (wire(1, 20), forged(1)):
            start = time.monotonic()
            client.predict(batch)
            assert time.monotonic() - start >= 0.3


# --- starts that fail ----------------------------------------------------------------------------


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "firewall", "serve", "--host", "127.0.0.1", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_port_in_use_is_one_clear_line(
    server: Served, tiny_path: Path, signer: Signer, tmp_path: Path
) -> None:
    key = tmp_path / "k.pub"
    key.write_text(signer.public)
    common = (str(tiny_path), "--trust", str(key))
    taken = {
        "--grpc-port": server.grpc_port,
        "--rest-port": server.rest_port,
        "--operations-port": server.operations_port,
    }
    for flag, port in taken.items():
        done = start(*common, *FREE_PORTS, flag, str(port))
        assert done.returncode == 2
        assert f"firewall: {flag}: 127.0.0.1:" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nowhere",), 1, "nowhere: no such directory"),
        (("TINY",), 1, "which is not trusted"),
        (("TINY", "--mode", "block"), 2, "--mode: "),
        (("TINY", "--policy", "nothing.toml"), 2, "nothing.toml cannot be read"),
        (("TINY", "--device", "tpu"), 2, "--device: should be 'cpu' or 'cuda', got 'tpu'"),
    ],
)
def test_a_start_that_cannot_be_is_one_clear_line(
    arguments: tuple[str, ...], code: int, words: str, tiny_path: Path
) -> None:
    done = start(*(str(tiny_path) if one == "TINY" else one for one in arguments))
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


class Stuck:
    """A stream that nobody reads."""

    def __init__(self) -> None:
        self.free = threading.Event()

    def write(self, text: str) -> int:
        self.free.wait(20)
        return len(text)

    def flush(self) -> None:
        pass


def test_an_audit_log_that_nobody_reads_holds_up_nobody() -> None:
    stream, dropped = Stuck(), []
    audit = Audit(stream, lambda: dropped.append(1))  # type: ignore[arg-type]
    for number in range(10_100):
        audit.event("x", number=number)
    assert dropped
    stream.free.set()
    audit.close()
