"""The steps of a request, over any protocol."""

from __future__ import annotations

import grpc
import pytest

from firewall.errors import (
    FirewallError,
    InvalidInput,
    NotReady,
    Overloaded,
    Refused,
    Unauthenticated,
    UnsupportedMedia,
    UpstreamError,
)
from firewall.serve.admission import AdmissionController
from firewall.serve.auth import Authenticator
from firewall.serve.context import RequestIds
from firewall.serve.metrics import Metrics
from firewall.serve.pipeline import Incoming, RequestPipeline
from firewall.serve.status import STATUSES, failure, grpc_status


def pipeline(
    metrics: Metrics | None = None,
    *,
    draining: bool = False,
    max_requests: int = 4,
    anonymous: bool = True,
) -> RequestPipeline:
    return RequestPipeline(
        Authenticator(allow_anonymous=anonymous),
        AdmissionController(max_requests),
        metrics or Metrics(),
        lambda: draining,
        RequestIds(),
    )


def incoming(protocol: str = "grpc", **headers: str | bytes) -> Incoming:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return Incoming(protocol, "service", "Method", "10.0.0.7", named)


def test_request_gives_its_place_back_however_it_ends() -> None:
    line = pipeline(max_requests=1)
    for end in ("succeed", "fail"):
        request = line.begin(incoming())
        request.admit()
        assert line.admission.running == 1
        if end == "succeed":
            request.succeed()
        else:
            request.fail(InvalidInput("x", "wrong"))
        assert line.admission.running == 0


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_every_request_is_counted_with_its_status(protocol: str) -> None:
    metrics = Metrics()
    line = pipeline(metrics)
    for error in (None, Overloaded("busy", 1.0), Refused("no", "id", (0,))):
        request = line.begin(incoming(protocol))
        if error is None:
            request.succeed()
        else:
            request.fail(error)
    read = metrics.registry.get_sample_value
    if protocol == "grpc":
        labels = {"grpc_type": "unary", "grpc_service": "service", "grpc_method": "Method"}
        for code in ("OK", "RESOURCE_EXHAUSTED", "PERMISSION_DENIED"):
            assert read("grpc_server_handled_total", labels | {"grpc_code": code}) == 1
        assert read("grpc_server_started_total", labels) == 3
    else:
        labels = {"service": "service", "route": "Method"}
        for status in ("200", "429", "403"):
            assert read("http_server_requests_total", labels | {"status": status}) == 1
        assert read("http_server_requests_started_total", labels) == 3


@pytest.mark.parametrize("value", ["a\rb", "a\nb", "a\0b"])
def test_header_values_that_end_a_line_elsewhere_are_refused(value: str) -> None:
    request = pipeline().begin(incoming(anything=value))
    with pytest.raises(InvalidInput, match="CR, LF or NUL") as caught:
        request.admit()
    assert caught.value.field == "metadata['anything']"


def test_request_id_of_the_client_is_taken_or_refused() -> None:
    request = pipeline().begin(incoming(x_request_id="mine-1"))
    request.admit()
    assert request.context.request_id == "mine-1"
    other = pipeline().begin(incoming(x_request_id="two words"))
    with pytest.raises(InvalidInput, match="without spaces"):
        other.admit()
    assert other.context.request_id != "two words"


def test_stranger_and_late_comer_hold_no_place() -> None:
    guarded, stopping = pipeline(anonymous=False), pipeline(draining=True)
    with pytest.raises(Unauthenticated):
        guarded.begin(incoming()).admit()
    with pytest.raises(NotReady, match="shutting down"):
        stopping.begin(incoming()).admit()
    assert guarded.admission.running == stopping.admission.running == 0
    # A server that stops has to know whether requests still come.
    assert stopping.admission.last_arrival > 0


@pytest.mark.parametrize("kind", [kind for kind, _, _ in STATUSES])
def test_errors_for_clients_keep_their_text_and_have_both_statuses(
    kind: type[FirewallError],
) -> None:
    arguments: dict[type[FirewallError], tuple[object, ...]] = {
        InvalidInput: ("field", "is wrong"),
        UnsupportedMedia: ("field", "is not supported"),
        Overloaded: ("is busy", 2.5),
        Refused: ("is suspected", "id", (1,)),
    }
    error = kind(*arguments.get(kind, ("went wrong",)))
    failed = failure(error, "r-1")
    assert failed.text == str(error)
    assert 400 <= failed.http < 600
    status = grpc_status(failed)
    assert status.code is failed.code
    assert status.details == failed.text


@pytest.mark.parametrize(
    "error", [RuntimeError("/secret/path"), UpstreamError("/secret/path"), OSError("/secret/path")]
)
def test_internal_text_stays_inside(error: Exception) -> None:
    failed = failure(error, "r-1")
    assert "secret" not in failed.text
    assert "r-1" in failed.text
    assert failed.code is grpc.StatusCode.INTERNAL
    assert failed.http in (500, 502)
