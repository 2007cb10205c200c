"""The REST port under load, before it is ready, while it stops, and with clients that go away."""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from firewall.bundle.signing import Signer
from firewall.bundle.store import Bundle
from firewall.serve.auth import Authenticator, Tokens
from firewall.serve.server import Server
from tests.e2e.conftest import MAX_MESSAGE
from tests.support.in_process import HeldModel, held_model, make_server, started
from tests.support.rest import check_public, tensor
from tests.support.served import Served, served
from tests.support.tiny import wire

INFER = "/v2/models/tiny/infer"
BODY = json.dumps({"inputs": [tensor(wire(1, 20))]}).encode()


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.rest_port}"


def until(condition: Callable[[], bool]) -> None:
    """Wait for what has to happen soon."""
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def begin(port: int, *headers: str, body: bytes = b"") -> socket.socket:
    """A connection that has sent the headers of a request, and a part of its body."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    lines = (f"POST {INFER} HTTP/1.1", "Host: firewall", *headers)
    connection.sendall("".join(f"{line}\r\n" for line in (*lines, "")).encode() + body)
    return connection


def rest_of(connection: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received


# --- size ---------------------------------------------------------------------------------------


def test_body_over_the_limit_is_refused_by_its_header(server: Served) -> None:
    with begin(server.rest_port, f"Content-Length: {MAX_MESSAGE + 1}") as connection:
        # Before a byte of it has been sent.
        answer = b""
        while b"}" not in answer:
            answer += connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"body: 1048577 bytes; at most 1048576 are accepted" in answer


def test_body_over_the_limit_is_refused_as_it_comes(server: Served) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(2 * MAX_MESSAGE // 65536):
            yield bytes(65536)

    answer = httpx.post(f"{server.rest}{INFER}", content=chunks())
    assert answer.status_code == 413
    check_public(answer)
    assert answer.json()["error"] == "body: more than 1048576 bytes"


def test_body_of_the_limit_is_read(server: Served) -> None:
    answer = httpx.post(f"{server.rest}{INFER}", content=BODY + b" " * (MAX_MESSAGE - len(BODY)))
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "data",
    [
        b"GET /v2 HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
        b"POST /v2/models/tiny/infer HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v2/models/tiny/infer HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nX-A: a\0b\r\n\r\n",
    ],
)
def test_requests_that_are_no_http_are_refused(data: bytes, server: Served) -> None:
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=20) as connection:
        connection.sendall(data)
        answer = rest_of(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    for internal in (b"Traceback", b".py", b"uvicorn"):
        assert internal not in answer
    assert httpx.get(f"{server.rest}/v2/health/ready").status_code == 200


# --- time ---------------------------------------------------------------------------------------


def test_bodies_that_never_come_are_ended_and_give_their_places_back(
    tiny_path: Path, signer: Signer, tmp_path: Path
) -> None:
    with (
        served(tiny_path, signer, tmp_path, "--max-requests", "4") as running,
        ExitStack() as stack,
    ):
        waiting = [
            stack.enter_context(begin(running.rest_port, "Content-Length: 100", body=b"{"))
            for _ in range(3)
        ]
        ended, _, _ = select.select(waiting, [], [], 20)
        # Its place is free again, and with it the patience with whoever is left.
        head, _, body = rest_of(ended[0]).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 499 ")
        assert json.loads(body)["error"] == "the body did not arrive in time"
        assert httpx.post(f"{running.rest}{INFER}", content=BODY).status_code in (200, 403)


def test_trickled_body_is_ended(tiny_path: Path, signer: Signer, tmp_path: Path) -> None:
    """The time is of the whole body: each byte does not buy more."""
    # One place: it is busy from the first request on.
    with (
        served(tiny_path, signer, tmp_path, "--max-requests", "1") as running,
        begin(running.rest_port, "Transfer-Encoding: chunked") as connection,
    ):
        connection.settimeout(0.1)
        received = b""
        for _ in range(150):
            try:
                connection.sendall(b"1\r\n \r\n")
                received += connection.recv(4096)
            except TimeoutError:
                continue
            except OSError:
                break
            if received:
                break
        assert received.startswith(b"HTTP/1.1 499 ")


# --- load, start and stop -----------------------------------------------------------------------


def test_requests_beyond_the_limit_are_told_when_to_retry(tiny: Bundle) -> None:
    model = held_model(tiny)
    answers: list[httpx.Response] = []
    with started(model, max_requests=2) as server:

        def ask() -> None:
            answers.append(httpx.post(f"{url(server)}{INFER}", content=BODY, timeout=20))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        until(lambda: len(answers) == 4)
        for answer in answers:
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) >= 1
            check_public(answer)
        # Health and descriptions do not wait for a place.
        for path in ("/v2/health/ready", "/v2/models/tiny/ready", "/v2/models/tiny/config"):
            assert httpx.get(url(server) + path).status_code == 200
        model.held.work.set()
        for thread in threads:
            thread.join(20)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429, 429]


def test_rows_beyond_the_rate_are_refused(tiny: Bundle) -> None:
    model = held_model(tiny)
    model.held.work.set()
    with started(model, client_rate=0.5, client_burst=8.0) as server:
        body = {"inputs": [tensor(wire(8, 20))]}
        assert httpx.post(f"{url(server)}{INFER}", json=body).status_code in (200, 403)
        answer = httpx.post(f"{url(server)}{INFER}", content=BODY)
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "2"
    assert answer.json()["error"] == "more than 0.5 rows a second from this client"


def test_not_ready_until_the_self_test_has_passed(tiny: Bundle) -> None:
    model = held_model(tiny)
    model.held.work.set()
    server = make_server(model)
    thread = threading.Thread(target=server.start)
    thread.start()
    try:
        with httpx.Client(base_url=url(server), timeout=20) as http:
            assert http.get("/v2/health/live").status_code == 200
            for path in ("/v2/health/ready", "/v2/models/tiny/ready"):
                answer = http.get(path)
                assert (answer.status_code, answer.json()["ready"]) == (503, False)
            answer = http.post(INFER, content=BODY)
            assert answer.status_code == 503
            check_public(answer)
            assert "has not passed its self-test" in answer.json()["error"]
            [entry] = http.post("/v2/repository/index").json()
            assert (entry["state"], entry["reason"]) == ("UNAVAILABLE", "not ready")
            assert http.post("/v2/repository/index", json={"ready": True}).json() == []
            model.test.set()
            thread.join(20)
            assert http.get("/v2/health/ready").status_code == 200
            assert http.post(INFER, content=BODY).status_code == 200
    finally:
        model.test.set()
        thread.join(20)
        server.stop(0)


def test_stop_answers_what_runs_and_turns_away_what_comes(tiny: Bundle) -> None:
    model = held_model(tiny)
    answers: list[httpx.Response] = []
    with started(model) as server:
        asking = threading.Thread(
            target=lambda: answers.append(
                httpx.post(f"{url(server)}{INFER}", content=BODY, timeout=20)
            )
        )
        asking.start()
        assert model.held.working.wait(10)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        until(lambda: not server.ready())
        with httpx.Client(base_url=url(server), timeout=5) as http:
            late = http.post(INFER, content=BODY)
            assert late.status_code == 503
            assert late.json()["error"] == "the server is shutting down"
            assert http.get("/v2/health/ready").status_code == 503
            assert http.get("/v2/models/tiny/ready").status_code == 503
            assert http.get("/v2/health/live").status_code == 200
        model.held.work.set()
        asking.join(20)
        stopping.join(20)
    [answer] = answers
    assert answer.status_code == 200


# --- clients ------------------------------------------------------------------------------------


def occupied(model: HeldModel, server: Server, stack: ExitStack) -> None:
    """Another request holds the guard until it is let go."""
    first = stack.enter_context(begin(server.rest_port, f"Content-Length: {len(BODY)}", body=BODY))
    stack.callback(first.close)
    assert model.held.working.wait(10)


def test_client_that_goes_away_gives_its_place_back(tiny: Bundle) -> None:
    model = held_model(tiny)
    with started(model, max_requests=2) as server, ExitStack() as stack:
        occupied(model, server, stack)
        waiting = begin(server.rest_port, f"Content-Length: {len(BODY)}", body=BODY)
        until(lambda: model.queued_rows == 1)
        assert httpx.post(f"{url(server)}{INFER}", content=BODY).status_code == 429
        waiting.close()
        until(lambda: model.queued_rows == 0)
        # Its place is free, and its row is not computed.
        another = stack.enter_context(
            begin(server.rest_port, f"Content-Length: {len(BODY)}", body=BODY)
        )
        until(lambda: model.queued_rows == 1)
        model.held.work.set()
        assert another.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert model.held.batches == [1, 1]


def test_client_that_goes_away_within_its_body_gives_its_place_back(tiny: Bundle) -> None:
    model = held_model(tiny)
    model.held.work.set()
    with started(model, max_requests=1) as server:
        for _ in range(5):
            begin(server.rest_port, "Content-Length: 5000", body=b"{").close()
        until(lambda: httpx.post(f"{url(server)}{INFER}", content=BODY).status_code == 200)


def test_clients_without_a_token_learn_nothing_but_health(tiny: Bundle, tmp_path: Path) -> None:
    token, line = Tokens.entry("friend")
    (tmp_path / "tokens.toml").write_text(f"[clients]\n{line}\n")
    tokens = Tokens.load(tmp_path / "tokens.toml")
    model = held_model(tiny)
    model.held.work.set()
    paths = (
        "/v2", "/v2/models/tiny", "/v2/models/tiny/config", "/v2/models/tiny/stats",
        "/v2/models/tiny/ready", "/v2/models/stats", "/v2/repository/index", "/v2/models/cats",
    )  # fmt: skip
    authenticator = Authenticator(lambda: tokens, allow_anonymous=False)
    with (
        started(model, authenticator) as server,
        httpx.Client(base_url=url(server), timeout=20) as http,
    ):
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            for answer in (
                *(http.get(path, headers=headers) for path in paths),
                http.post(INFER, content=BODY, headers=headers),
            ):
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
                check_public(answer)
                assert "tiny" not in answer.text
        assert http.get("/v2/health/ready").status_code == 200
        good = {"Authorization": f"Bearer {token}"}
        assert http.post(INFER, content=BODY, headers=good).status_code == 200
        assert http.get("/v2/models/tiny", headers=good).status_code == 200
