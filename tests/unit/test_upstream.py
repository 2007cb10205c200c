"""Calls of a served classifier, over every transport: limits, retries, breaker, errors."""

from __future__ import annotations

import json
import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from firewall.errors import (
    ConfigError,
    DeadlineExceeded,
    FirewallError,
    InvalidInput,
    NotReady,
    Overloaded,
    UpstreamError,
)
from firewall.serve.status import failure
from firewall.upstream.client import Upstream, describe
from firewall.upstream.settings import UpstreamSettings
from firewall.upstream.trace import TRACE_CONTEXT
from tests.support.upstream_servers import (
    Model,
    Running,
    grpc_server,
    raw_server,
    rest_server,
    sums,
)

X = np.arange(6, dtype=np.float32).reshape(3, 2, 1, 1)
SUMS = [[1, -1], [5, -5], [9, -9]]

Serve = Callable[..., AbstractContextManager[Running]]
#: A server for each transport: REST with the binary extension, declared or not, and without it.
SERVERS: dict[str, Serve] = {
    "grpc": grpc_server,
    "rest": rest_server,
    "rest-unlisted": partial(rest_server, binary="unlisted"),
    "rest-json": partial(rest_server, binary="none"),
}
REST = ("rest", "rest-unlisted", "rest-json")


class Ask:
    """Starts a server of the transport that is tested, and clients of it."""

    def __init__(self, serve: Serve, model: Model, stack: ExitStack) -> None:
        self._serve, self._model, self._stack = serve, model, stack
        self._running: Running | None = None

    def server(self, limit: int | None = None) -> Running:
        if self._running is None:
            self._running = self._stack.enter_context(self._serve(self._model, limit))
        return self._running

    def __call__(self, clock: Callable[[], float] = time.monotonic, **settings: object) -> Upstream:
        parsed = UpstreamSettings.parse(f"{self.server().url}/2", **settings)
        client = Upstream(parsed, input_name="image", output="logits", clock=clock)
        self._stack.callback(client.close)
        return client


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture(params=sorted(SERVERS))
def upstream(request: pytest.FixtureRequest, model: Model) -> Iterator[Ask]:
    with ExitStack() as stack:
        yield Ask(SERVERS[request.param], model, stack)


def test_rows_are_asked_in_order_and_in_calls_of_a_size(upstream: Ask, model: Model) -> None:
    client = upstream(batch=2)
    assert client.ready()
    assert client.infer(X, None).scores.tolist() == SUMS
    assert model.batches == [2, 1]
    model.ready = False
    assert not client.ready()


def test_metadata_describe_the_model(upstream: Ask) -> None:
    source, output, platform = describe(UpstreamSettings.parse(f"{upstream.server().url}/2"))
    assert (source.name, source.datatype, source.shape) == ("image", "FP32", (-1, 2, 1, 1))
    assert (output.name, output.shape, platform) == ("logits", (-1, 2), "test")


def test_describe_names_the_model_that_the_server_does_not_know() -> None:
    with rest_server(Model()) as running:
        settings = UpstreamSettings.parse(f"http://127.0.0.1:{running.port}/dogs")
        with pytest.raises(ConfigError, match=r"does not describe model 'dogs': .*404"):
            describe(settings)


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
def test_rows_of_every_input_datatype_arrive_bit_for_bit(
    dtype: str, upstream: Ask, model: Model
) -> None:
    seen: list[np.ndarray] = []

    def answer(x: np.ndarray) -> np.ndarray:
        seen.append(x)
        return sums(x.astype(np.float32))

    model.answer = answer
    rows = (np.random.default_rng(0).random((9, 3, 32, 32)) * 200).astype(dtype)
    upstream(batch=5).infer(rows, None)
    assert np.concatenate(seen).dtype == rows.dtype
    assert np.array_equal(np.concatenate(seen), rows)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32", "int64", "uint8"])
def test_floats_stay_what_they_are_and_other_numbers_become_float32(
    dtype: str, upstream: Ask, model: Model
) -> None:
    model.answer = lambda x: np.abs(sums(x)).astype(dtype)
    found = upstream().infer(X, None).scores
    assert found.dtype == (dtype if dtype.startswith("float") else np.float32)
    assert found.tolist() == [[1, 1], [5, 5], [9, 9]]


@pytest.mark.parametrize("transport", sorted(SERVERS))
def test_binary_tensors_are_used_where_the_server_understands_them(
    transport: str, model: Model
) -> None:
    with ExitStack() as stack:
        client = Ask(SERVERS[transport], model, stack)()
        for _ in range(2):
            assert client.infer(X, None).scores.tolist() == SUMS
    form = {"grpc": "grpc", "rest-json": "json"}.get(transport, "binary")
    assert model.forms == [form] * 2


@pytest.mark.parametrize(("bound", "batches"), [(16, [2, 1]), (15, [1, 1, 1]), (1, [1, 1, 1])])
@pytest.mark.parametrize("transport", ["grpc", "rest", "rest-unlisted"])
def test_calls_are_bounded_in_bytes_and_carry_one_row_at_least(
    transport: str, bound: int, batches: list[int], model: Model
) -> None:
    with ExitStack() as stack:
        client = Ask(SERVERS[transport], model, stack)(max_call_bytes=bound)
        assert client.infer(X, None).scores.tolist() == SUMS
    assert model.batches == batches


def test_json_calls_are_bounded_by_the_length_of_their_text(model: Model) -> None:
    rows = np.random.default_rng(0).random((8, 3, 16, 16), np.float32)
    with ExitStack() as stack:
        ask = Ask(SERVERS["rest-json"], model, stack)
        ask.server(limit=rows.nbytes + 2000)
        client = ask(max_call_bytes=rows.nbytes)
        # What the server understands is known after the first call.
        client.infer(rows[:1], None)
        assert np.allclose(client.infer(rows, None).scores, sums(rows))
    assert len(model.batches) > 3
    assert max(model.batches[1:]) == 8 * 4 // 12


def test_a_call_that_is_too_large_is_halved_and_the_size_is_kept(
    upstream: Ask, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    rows = np.random.default_rng(0).random((8, 3, 16, 16), np.float32)
    # Two rows and a half, in the largest of all forms.
    upstream.server(limit=rows[:1].nbytes * 10)
    client = upstream(max_call_bytes=1 << 30)
    rows = np.repeat(rows, 8, axis=0)
    with caplog.at_level(logging.WARNING):
        assert np.allclose(client.infer(rows, None).scores, sums(rows))
    assert sum(model.batches) == len(rows)
    assert "as too large" in caplog.text
    sizes = len(set(model.batches))
    caplog.clear()
    assert np.allclose(client.infer(rows, None).scores, sums(rows))
    assert caplog.text == ""
    assert len(set(model.batches)) == sizes


def test_a_server_that_refuses_a_large_body_and_hangs_up_is_understood(model: Model) -> None:
    rows = np.random.default_rng(0).random((40, 3, 224, 224), np.float32)
    with rest_server(model, limit=8 << 20, hangs_up=True) as running:
        client = Upstream(
            UpstreamSettings.parse(running.url, max_call_bytes=1 << 30),
            input_name="image", output="logits",
        )  # fmt: skip
        assert np.allclose(client.infer(rows, None).scores, sums(rows))
        client.close()
    assert max(model.batches) == 10


def test_a_single_row_that_is_too_large_fails(upstream: Ask, model: Model) -> None:
    upstream.server(limit=2000)
    with pytest.raises(UpstreamError, match="RESOURCE_EXHAUSTED"):
        upstream().infer(np.zeros((2, 3, 32, 32), np.float32), None)
    assert model.batches == []


@pytest.mark.parametrize(
    ("code", "kind", "told"),
    [
        ("INVALID_ARGUMENT", InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
        ("RESOURCE_EXHAUSTED", Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
        ("UNAVAILABLE", NotReady, grpc.StatusCode.UNAVAILABLE),
        ("FAILED_PRECONDITION", UpstreamError, grpc.StatusCode.FAILED_PRECONDITION),
        ("NOT_FOUND", UpstreamError, grpc.StatusCode.NOT_FOUND),
        ("INTERNAL", UpstreamError, grpc.StatusCode.INTERNAL),
        # A refusal of the firewall is no verdict about the image.
        ("PERMISSION_DENIED", UpstreamError, grpc.StatusCode.INTERNAL),
        ("UNAUTHENTICATED", UpstreamError, grpc.StatusCode.INTERNAL),
    ],
)
def test_a_status_stays_what_it_is_and_secrets_stay_inside(
    code: str, kind: type[FirewallError], told: grpc.StatusCode, upstream: Ask, model: Model
) -> None:
    model.says = [(code, "image: /secret/path")] * 2
    with pytest.raises(kind) as caught:
        upstream().infer(X, None)
    status = failure(caught.value, "r1")
    assert status.code is told
    # What the caller did wrong it is told; what failed behind the firewall it is not.
    assert ("secret" in status.text) is (code in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"))


def test_a_call_that_did_not_arrive_is_made_once_more(upstream: Ask, model: Model) -> None:
    client = upstream()
    model.says = [("UNAVAILABLE", "gone")]
    assert len(client.infer(X, None).scores) == 3
    assert len(model.batches) == 2
    model.says = [("INTERNAL", "broken")]
    with pytest.raises(UpstreamError):
        client.infer(X, None)
    assert len(model.batches) == 3


def test_the_breaker_opens_lets_one_call_probe_and_closes(upstream: Ask, model: Model) -> None:
    now = [100.0]
    client = upstream(clock=lambda: now[0], breaker=2, pause=1.0)
    model.says = [("UNAVAILABLE", "gone")] * 6
    for _ in range(2):
        with pytest.raises(NotReady):
            client.infer(X, None)
    asked = len(model.batches)
    with pytest.raises(NotReady):
        client.infer(X, None)
    assert len(model.batches) == asked, "asked although the breaker is open"
    now[0] += 1.5
    with pytest.raises(NotReady):
        client.infer(X, None)
    assert len(model.batches) == asked + 2
    # The probe has failed: open for another second.
    with pytest.raises(NotReady):
        client.infer(X, None)
    assert len(model.batches) == asked + 2
    now[0] += 1.5
    assert len(client.infer(X, None).scores) == 3
    assert len(client.infer(X, None).scores) == 3


def test_while_one_call_probes_the_others_are_refused_at_once(upstream: Ask, model: Model) -> None:
    now = [100.0]
    client = upstream(clock=lambda: now[0], breaker=1, pause=1.0)
    model.says = [("UNAVAILABLE", "gone")] * 2
    with pytest.raises(NotReady):
        client.infer(X, None)
    now[0] += 2
    model.hold = 0.5
    before = len(model.batches)
    probe = threading.Thread(target=lambda: client.infer(X, None))
    probe.start()
    for _ in range(200):
        if len(model.batches) > before:
            break
        time.sleep(0.01)
    with pytest.raises(NotReady):
        client.infer(X, None)
    probe.join(10)
    assert len(model.batches) == before + 1
    assert len(client.infer(X, None).scores) == 3


def test_a_callers_short_deadline_ends_its_call_and_opens_no_breaker(
    upstream: Ask, model: Model
) -> None:
    client = upstream(breaker=2)
    client.infer(X, None)
    model.hold = 0.3
    for _ in range(4):
        with pytest.raises(DeadlineExceeded):
            client.infer(X, time.monotonic() + 0.1)
    with pytest.raises(DeadlineExceeded, match="before the classifier could be asked"):
        client.infer(X, time.monotonic() + 0.001)
    model.hold = 0.0
    assert len(client.infer(X, time.monotonic() + 10).scores) == 3


def test_timeouts_of_our_own_open_the_breaker(upstream: Ask, model: Model) -> None:
    client = upstream(breaker=2, timeout=0.1)
    model.hold = 0.3
    for _ in range(2):
        with pytest.raises(DeadlineExceeded):
            client.infer(X, None)
    asked = len(model.batches)
    with pytest.raises(NotReady):
        client.infer(X, None)
    assert len(model.batches) == asked


def test_a_server_that_is_not_there_is_not_ready(upstream: Ask, model: Model) -> None:
    with grpc_server(model) as gone:
        pass
    scheme = upstream.server().scheme
    client = Upstream(
        UpstreamSettings.parse(f"{scheme}://127.0.0.1:{gone.port}/cats"),
        input_name="image", output="logits",
    )  # fmt: skip
    assert not client.ready()
    with pytest.raises(NotReady, match="does not answer"):
        client.infer(X, None)
    client.close()


def test_another_output_is_named(upstream: Ask, model: Model) -> None:
    model.output = "boxes"
    with pytest.raises(UpstreamError, match="answered boxes; expected the output 'logits'"):
        upstream().infer(X, None)


@pytest.mark.parametrize("shape", [(6,), (2, 2), (1, 3, 2)])
def test_an_answer_of_another_shape_is_an_error(
    shape: tuple[int, ...], upstream: Ask, model: Model
) -> None:
    model.answer = lambda x: np.zeros(shape, np.float32)
    with pytest.raises(UpstreamError, match="for 3 rows; expected"):
        upstream().infer(X, None)


def test_calls_of_a_batch_that_answer_different_classes_are_an_error(
    upstream: Ask, model: Model
) -> None:
    model.answer = lambda x: np.zeros((len(x), 1 + len(model.batches)), np.float32)
    with pytest.raises(UpstreamError, match="different numbers of classes"):
        upstream(batch=2).infer(X, None)


def test_the_token_and_the_trace_travel_with_every_call(upstream: Ask, model: Model) -> None:
    tokens = iter(["first", "second"])
    client = upstream(token=lambda: next(tokens))
    context = TRACE_CONTEXT.set((("traceparent", "00-abc-def-01"),))
    try:
        client.infer(X, None)
        client.infer(X, None)
    finally:
        TRACE_CONTEXT.reset(context)
    assert [headers["authorization"] for headers in model.headers] == [
        "Bearer first",
        "Bearer second",
    ]
    assert {headers["traceparent"] for headers in model.headers} == {"00-abc-def-01"}


def test_a_server_that_comes_back_without_the_extension_is_asked_in_json(model: Model) -> None:
    """As when an upstream is replaced by another server behind one address."""
    rest = rest_server(model)
    running = rest.__enter__()
    client = Upstream(UpstreamSettings.parse(running.url), input_name="image", output="logits")
    assert client.infer(X, None).scores.tolist() == SUMS
    rest.__exit__(None, None, None)
    with pytest.raises(NotReady):
        client.infer(X, None)
    with rest_server(model, binary="none", port=running.port):
        assert client.infer(X, None).scores.tolist() == SUMS
    client.close()
    assert model.forms == ["binary", "json"]


def answer_bytes(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def output(**changes: object) -> bytes:
    tensor = {"name": "logits", "datatype": "FP32", "shape": [3, 2], "data": [0.0] * 6}
    return json.dumps({"outputs": [tensor | changes]}).encode()


BINARY = output(data=None, parameters={"binary_data_size": 24})


@pytest.mark.parametrize(
    "reply",
    [
        answer_bytes(b""),
        answer_bytes(b"[]"),
        answer_bytes(b'{"outputs": 3}'),
        answer_bytes(b"[" * 100_000),
        answer_bytes(output(data=[0.0] * 5)),
        answer_bytes(output(data="zeros")),
        answer_bytes(output(shape=[-3, -2])),
        answer_bytes(output(shape=[3, 2, 1 << 62])),
        answer_bytes(output(datatype="BYTES")),
        answer_bytes(BINARY + bytes(24), "Inference-Header-Content-Length: 1000000"),
        answer_bytes(BINARY + bytes(24), "Inference-Header-Content-Length: -1"),
        answer_bytes(BINARY + bytes(24), "Inference-Header-Content-Length: x"),
        answer_bytes(BINARY + bytes(20), f"Inference-Header-Content-Length: {len(BINARY)}"),
        b"HTTP/1.1 307 No\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_malformed_rest_answers_are_errors_and_never_crashes(reply: bytes) -> None:
    with raw_server(lambda: iter([reply])) as running:
        client = Upstream(UpstreamSettings.parse(running.url), input_name="image", output="logits")
        with pytest.raises(UpstreamError, match=r"malformed|HTTP 307|expected the output"):
            client.infer(X, None)
        client.close()


@pytest.mark.parametrize("reply", [b"no HTTP\r\n\r\n", answer_bytes(output())[:-10]])
def test_a_rest_answer_that_is_cut_off_is_no_answer(reply: bytes) -> None:
    with raw_server(lambda: iter([reply])) as running:
        client = Upstream(UpstreamSettings.parse(running.url), input_name="image", output="logits")
        with pytest.raises(NotReady, match="does not answer"):
            client.infer(X, None)
        client.close()


def test_strings_before_the_scores_are_skipped() -> None:
    names = {"name": "names", "datatype": "BYTES", "shape": [1],
             "parameters": {"binary_data_size": 7}}  # fmt: skip
    scores = {"name": "logits", "datatype": "FP32", "shape": [3, 2],
              "parameters": {"binary_data_size": 24}}  # fmt: skip
    head = json.dumps({"outputs": [names, scores]}).encode()
    raw = b"strings" + np.arange(6, dtype="<f4").tobytes()
    reply = answer_bytes(head + raw, f"Inference-Header-Content-Length: {len(head)}")
    with raw_server(lambda: iter([reply])) as running:
        client = Upstream(UpstreamSettings.parse(running.url), input_name="image", output="logits")
        assert client.infer(X, None).scores.tolist() == [[0, 1], [2, 3], [4, 5]]
        client.close()


@pytest.mark.parametrize("transport", sorted(SERVERS))
def test_answers_are_bounded(transport: str, model: Model) -> None:
    model.answer = lambda x: np.zeros((len(x), 100_000), np.float32)
    with ExitStack() as stack:
        client = Ask(SERVERS[transport], model, stack)(max_message=100_000)
        with pytest.raises(UpstreamError, match=r"larger than"):
            client.infer(X[:1], None)


def test_a_body_that_drips_ends_at_the_deadline() -> None:
    def drip() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
        for _ in range(200):
            time.sleep(0.05)
            yield b" "

    with raw_server(drip) as running:
        client = Upstream(UpstreamSettings.parse(running.url), input_name="image", output="logits")
        with pytest.raises(DeadlineExceeded):
            client.infer(X, time.monotonic() + 0.5)
        client.close()


def test_an_upstream_over_grpc_loads_no_http_client() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from firewall.upstream.client import Upstream; "
        "from firewall.upstream.settings import UpstreamSettings; "
        "Upstream(UpstreamSettings.parse('grpc://127.0.0.1:1/m'), input_name='', output='');"
        "print('urllib3' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def certificate() -> tuple[bytes, bytes]:
    """A key and a certificate of 127.0.0.1, signed by itself, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "upstream")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )  # fmt: skip
    return private, made.public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize("transport", ["grpc", "rest"])
def test_tls_is_spoken_with_servers_that_our_authorities_know(
    transport: str, model: Model, tmp_path: Path
) -> None:
    private, own = certificate()
    with ExitStack() as stack:
        if transport == "grpc":
            running = stack.enter_context(grpc_server(model, credentials=(private, own)))
        else:
            (tmp_path / "key.pem").write_bytes(private)
            (tmp_path / "cert.pem").write_bytes(own)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
            running = stack.enter_context(rest_server(model, context=context))
        clients = [
            Upstream(
                UpstreamSettings.parse(running.url, tls=authorities),
                input_name="image", output="logits",
            )
            for authorities in (own, certificate()[1])
        ]  # fmt: skip
        for client in clients:
            stack.callback(client.close)
        assert clients[0].infer(X, None).scores.tolist() == SUMS
        assert not clients[1].ready()
        with pytest.raises(NotReady):
            clients[1].infer(X, None)
    assert model.batches == [3]
