"""The call to a classifier elsewhere: who is told what, when it is asked again, when no more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

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
from firewall.serve.status import to_status
from firewall.serve.upstream import Upstream, UpstreamSettings
from firewall.wire import open_inference_pb2 as oip

X = np.arange(6, dtype=np.float32).reshape(3, 2, 1, 1)


class Classifier:
    """A real gRPC server that says what a test wants: a status, or the sums of its rows."""

    def __init__(self) -> None:
        self.says: list[tuple[grpc.StatusCode, str]] = []
        self.batches: list[int] = []
        self.hold = 0.0
        self.output = "logits"

    def infer(self, request: oip.ModelInferRequest, context: grpc.ServicerContext) -> object:
        rows = int(request.inputs[0].shape[0])
        self.batches.append(rows)
        time.sleep(self.hold)
        if self.says:
            context.abort(*self.says.pop(0))
        x = np.frombuffer(request.raw_input_contents[0], "<f4").reshape(rows, -1)
        answer = oip.ModelInferResponse()
        answer.outputs.add(name=self.output, datatype="FP32", shape=[rows, 2])
        sums = np.stack([x.sum(axis=1), -x.sum(axis=1)], axis=1).astype("<f4")
        answer.raw_output_contents.append(sums.tobytes())
        return answer

    def ready(self, request: object, context: object) -> object:
        return oip.ModelReadyResponse(ready=True)


def serve(classifier: Classifier, credentials: grpc.ServerCredentials | None = None) -> object:
    server = grpc.server(ThreadPoolExecutor(4))
    methods = {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(
            classifier.infer, oip.ModelInferRequest.FromString,
            oip.ModelInferResponse.SerializeToString,
        ),
        "ModelReady": grpc.unary_unary_rpc_method_handler(
            classifier.ready, oip.ModelReadyRequest.FromString,
            oip.ModelReadyResponse.SerializeToString,
        ),
    }  # fmt: skip
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", methods),)
    )
    port = (
        server.add_insecure_port("127.0.0.1:0")
        if credentials is None
        else server.add_secure_port("127.0.0.1:0", credentials)
    )
    server.start()
    return server, port


@pytest.fixture
def classifier() -> Classifier:
    return Classifier()


Ask = Callable[..., Upstream]


@pytest.fixture
def upstream(classifier: Classifier) -> Iterator[Ask]:
    server, port = serve(classifier)  # type: ignore[misc]
    made: list[Upstream] = []

    def make(clock: Callable[[], float] = time.monotonic, **settings: object) -> Upstream:
        url = f"grpc://127.0.0.1:{port}/cats/2"
        parsed = UpstreamSettings.parse(url, **settings)
        made.append(Upstream(parsed, input_name="image", output="logits", clock=clock))
        return made[-1]

    yield make
    for one in made:
        one.close()
    server.stop(None).wait()


def test_rows_are_asked_in_order_and_in_calls_of_a_size(
    upstream: Ask, classifier: Classifier
) -> None:
    one = upstream(batch=2)
    assert one.ready()
    assert one.infer(X, None).tolist() == [[1, -1], [5, -5], [9, -9]]
    assert classifier.batches == [2, 1]


@pytest.mark.parametrize(
    ("code", "kind", "told"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (grpc.StatusCode.UNAVAILABLE, NotReady, grpc.StatusCode.UNAVAILABLE),
        (grpc.StatusCode.FAILED_PRECONDITION, UpstreamError,
         grpc.StatusCode.FAILED_PRECONDITION),
        (grpc.StatusCode.INTERNAL, UpstreamError, grpc.StatusCode.INTERNAL),
        # That it refuses us is no verdict about the image.
        (grpc.StatusCode.PERMISSION_DENIED, UpstreamError, grpc.StatusCode.INTERNAL),
        (grpc.StatusCode.UNAUTHENTICATED, UpstreamError, grpc.StatusCode.INTERNAL),
    ],
)  # fmt: skip
def test_a_status_stays_what_it_is_and_secrets_stay_inside(
    code: grpc.StatusCode, kind: type[FirewallError], told: grpc.StatusCode, upstream: Ask,
    classifier: Classifier,
) -> None:  # fmt: skip
    classifier.says = [(code, "image: /secret/path")] * 2
    with pytest.raises(kind) as caught:
        upstream().infer(X, None)
    status = to_status(caught.value, "r1")
    assert status.code is told
    # What the caller did wrong it is told; what failed over there it is not.
    shown = code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert ("secret" in status.details) is shown


def test_a_call_that_did_not_get_there_is_made_once_more(
    upstream: Ask, classifier: Classifier
) -> None:
    classifier.says = [(grpc.StatusCode.UNAVAILABLE, "gone")]
    assert len(upstream().infer(X, None)) == 3
    assert len(classifier.batches) == 2
    classifier.says = [(grpc.StatusCode.INTERNAL, "broken")]
    with pytest.raises(UpstreamError):
        upstream().infer(X, None)
    assert len(classifier.batches) == 3


def test_the_breaker_opens_lets_one_try_and_closes(upstream: Ask, classifier: Classifier) -> None:
    now = [100.0]
    one = upstream(clock=lambda: now[0], breaker=2, pause=1.0)
    classifier.says = [(grpc.StatusCode.UNAVAILABLE, "gone")] * 6
    for _ in range(2):
        with pytest.raises(NotReady):
            one.infer(X, None)
    asked = len(classifier.batches)
    with pytest.raises(NotReady):
        one.infer(X, None)
    assert len(classifier.batches) == asked, "asked although the breaker is open"
    now[0] += 1.5
    with pytest.raises(NotReady):
        one.infer(X, None)
    assert len(classifier.batches) == asked + 2
    # The try has failed: closed for another second.
    with pytest.raises(NotReady):
        one.infer(X, None)
    assert len(classifier.batches) == asked + 2
    now[0] += 1.5
    assert len(one.infer(X, None)) == 3
    assert len(one.infer(X, None)) == 3


def test_while_one_tries_the_others_are_refused_at_once(
    upstream: Ask, classifier: Classifier
) -> None:
    now = [100.0]
    one = upstream(clock=lambda: now[0], breaker=1, pause=1.0)
    classifier.says = [(grpc.StatusCode.UNAVAILABLE, "gone")] * 2
    with pytest.raises(NotReady):
        one.infer(X, None)
    now[0] += 2
    classifier.hold = 0.5
    before = len(classifier.batches)
    trying = threading.Thread(target=lambda: one.infer(X, None))
    trying.start()
    for _ in range(200):
        if len(classifier.batches) > before:
            break
        time.sleep(0.01)
    with pytest.raises(NotReady):
        one.infer(X, None)
    trying.join(10)
    assert len(classifier.batches) == before + 1
    assert len(one.infer(X, None)) == 3


def test_a_callers_short_deadline_ends_its_call_and_opens_no_breaker(
    upstream: Ask, classifier: Classifier
) -> None:
    one = upstream(breaker=2)
    classifier.hold = 0.3
    for _ in range(4):
        with pytest.raises(DeadlineExceeded):
            one.infer(X, time.monotonic() + 0.1)
    with pytest.raises(DeadlineExceeded, match="before the classifier could be asked"):
        one.infer(X, time.monotonic() + 0.001)
    classifier.hold = 0.0
    assert len(one.infer(X, time.monotonic() + 10)) == 3


def test_its_own_timeout_does_open_it(upstream: Ask, classifier: Classifier) -> None:
    one = upstream(breaker=2, timeout=0.1)
    classifier.hold = 0.3
    for _ in range(2):
        with pytest.raises(DeadlineExceeded):
            one.infer(X, None)
    with pytest.raises(NotReady):
        one.infer(X, None)


def test_another_output_is_said(upstream: Ask, classifier: Classifier) -> None:
    classifier.output = "boxes"
    with pytest.raises(UpstreamError, match="answered boxes; expected the output 'logits'"):
        upstream().infer(X, None)


@pytest.mark.parametrize(
    "url", ["host:1/m", "http://host:1/m", "grpc://host/m", "grpc://host:1", "grpc://host:1/m/1/2"]
)
def test_a_wrong_address_is_said(url: str) -> None:
    with pytest.raises(ConfigError, match="expected grpc://host:port/model"):
        UpstreamSettings.parse(url)


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


def test_tls_is_spoken_with_whom_our_authorities_know(classifier: Classifier) -> None:
    private, own = certificate()
    credentials = grpc.ssl_server_credentials([(private, own)])
    server, port = serve(classifier, credentials)  # type: ignore[misc]
    url = f"grpcs://127.0.0.1:{port}/cats"
    known = Upstream(UpstreamSettings.parse(url, tls=own), input_name="image", output="logits")
    other = Upstream(
        UpstreamSettings.parse(url, tls=certificate()[1]), input_name="image", output="logits"
    )
    try:
        assert len(known.infer(X, None)) == 3
        assert not other.ready()
    finally:
        known.close()
        other.close()
        server.stop(None).wait()
