"""gRPC clients in other languages, and proxies in front of both ports.

Of Debian: golang-go, golang-google-grpc-dev, default-jdk-headless, libgrpc-java, libnetty-java,
nodejs, npm, nginx-light, haproxy, nghttp2-proxy. What is not installed is skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.http

from firewall.bundle.store import Bundle
from firewall.serve.server import Server
from firewall.wire import open_inference_pb2 as oip
from tests.support.image_files import encoded
from tests.support.in_process import HeldModel, held_model, started
from tests.support.peers import free_ports
from tests.support.rest import binary, tensor, values
from tests.support.served import call
from tests.support.tiny import forged, wire

pytestmark = pytest.mark.interop

HERE = Path(__file__).resolve().parent
GO = Path("/usr/share/gocode")
JAVA = Path("/usr/share/java")
Ask = Callable[..., dict[str, Any]]
INFER = "/inference.GRPCInferenceService/ModelInfer"
REST_INFER = "/v2/models/tiny/infer"


@dataclass(frozen=True)
class Live:
    """A server in this process, and the model whose work can be held."""

    server: Server
    model: HeldModel

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.grpc_port}"


def message(seed: int, rows: int = 1) -> bytes:
    """An inference request."""
    return oip.ModelInferRequest(
        model_name="tiny",
        inputs=[{"name": "image", "datatype": "FP32", "shape": [rows, 3, 32, 32]}],
        raw_input_contents=[wire(rows, seed).tobytes()],
    ).SerializeToString()


def needed(*what: str | Path) -> None:
    for one in what:
        there = one.exists() if isinstance(one, Path) else shutil.which(one)
        if not there:
            pytest.skip(f"{one} is not here")


def built(command: list[str], folder: Path, **environment: str) -> None:
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True,
        timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def go(folder: Path) -> list[str]:
    needed("go", GO / "src/google.golang.org/grpc")
    built(
        ["go", "build", "-o", str(folder / "client"), str(HERE / "clients/client.go")],
        folder, GOPATH=str(GO), GO111MODULE="off", GOCACHE=str(folder / "cache"),
    )  # fmt: skip
    return [str(folder / "client")]


def java(folder: Path) -> list[str]:
    needed("java", "javac", JAVA / "grpc-netty.jar", JAVA / "netty-all.jar")
    source = str(HERE / "clients/Client.java")
    built(["javac", "-cp", f"{JAVA}/*", "-d", str(folder), source], folder)
    return ["java", "-cp", f"{folder}:{JAVA}/*", "Client"]


def javascript(folder: Path) -> list[str]:
    needed("node", "npm")
    built(["npm", "install", "--no-audit", "--no-fund", "@grpc/grpc-js@1"], folder)
    shutil.copy(HERE / "clients/client.js", folder)
    return ["node", str(folder / "client.js")]


@pytest.fixture(scope="module", params=[go, java, javascript], ids=["go", "java", "javascript"])
def ask(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ask:
    folder = tmp_path_factory.mktemp("client")
    command = request.param(folder)

    def asked(
        port: int,
        data: bytes,
        calls: int = 1,
        most: int = 1,
        method: str = INFER,
        within: float = 60,
    ) -> dict[str, Any]:
        (folder / "request").write_bytes(data)
        given = [f"127.0.0.1:{port}", method, str(folder / "request"), calls, most, within]
        done = subprocess.run(
            [*command, *map(str, given)], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    return asked


@pytest.fixture
def live(tiny: Bundle) -> Iterator[Live]:
    model = held_model(tiny, queue_rows=1024)
    model.held.work.set()
    # Room for every call of a test: what a client does with a refusal is not what is tested.
    with started(model, max_requests=256, max_wait=30.0) as server:
        yield Live(server, model)


def nginx(folder: Path, port: int, behind: int, *, rest: bool = False) -> list[str]:
    needed("nginx")
    config = folder / "nginx.conf"
    location = (
        f"proxy_pass http://127.0.0.1:{behind};"
        if rest
        else (f"grpc_pass grpc://127.0.0.1:{behind};")
    )
    config.write_text(f"""
        daemon off; master_process off; pid {folder}/pid; error_log stderr;
        events {{}}
        http {{
            access_log off; client_max_body_size 64m;
            client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
            fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
            server {{
                listen 127.0.0.1:{port}{"" if rest else " http2"};
                location / {{ {location} }}
            }}
        }}
    """)
    return ["nginx", "-p", str(folder), "-c", str(config)]


def haproxy(folder: Path, port: int, behind: int, *, rest: bool = False) -> list[str]:
    needed("haproxy")
    protocol = "" if rest else " proto h2"
    config = folder / "haproxy.cfg"
    config.write_text(f"""
defaults
    mode http
    option abortonclose
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend front
    bind 127.0.0.1:{port}{protocol}
    default_backend back
backend back
    server one 127.0.0.1:{behind}{protocol}
""")
    return ["haproxy", "-f", str(config), "-db"]


def nghttpx(folder: Path, port: int, behind: int, *, rest: bool = False) -> list[str]:
    needed("nghttpx")
    assert not rest
    return [
        "nghttpx", "--conf=/dev/null", f"--frontend=127.0.0.1,{port};no-tls",
        f"--backend=127.0.0.1,{behind};;proto=h2", "--workers=1", "--errorlog-file=/dev/stderr",
    ]  # fmt: skip


@contextmanager
def running(command: list[str], port: int, log: Path) -> Iterator[None]:
    """A proxy that listens."""
    with ExitStack() as stack:
        file = stack.enter_context(log.open("w"))
        process = subprocess.Popen(command, stdout=file, stderr=file)
        stack.callback(process.wait, 20)
        stack.callback(process.kill)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield


@pytest.fixture(
    params=[None, nginx, haproxy, nghttpx], ids=["direct", "nginx", "haproxy", "nghttpx"]
)
def port(request: pytest.FixtureRequest, live: Live, tmp_path: Path) -> Iterator[int]:
    """The gRPC port of the server, or of a proxy in front of it."""
    if request.param is None:
        yield live.server.grpc_port
        return
    [front] = free_ports(1)
    with running(request.param(tmp_path, front, live.server.grpc_port), front, tmp_path / "log"):
        yield front


@pytest.fixture(params=[nginx, haproxy], ids=["nginx", "haproxy"])
def rest(request: pytest.FixtureRequest, live: Live, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of a proxy in front of the REST port."""
    [front] = free_ports(1)
    command = request.param(tmp_path, front, live.server.rest_port, rest=True)
    with (
        running(command, front, tmp_path / "log"),
        httpx.Client(base_url=f"http://127.0.0.1:{front}", timeout=60) as client,
    ):
        yield client


def accepted(live: Live) -> tuple[bytes, int]:
    """A request that is answered, and the bytes of its answer."""
    data = message(20)
    return data, len(call(live.address, INFER, data))


# --- gRPC ---------------------------------------------------------------------------------------


def test_many_requests(ask: Ask, live: Live, port: int) -> None:
    data, size = accepted(live)
    found = ask(port, data, calls=500, most=32)
    assert found["codes"] == {"0": 500}
    assert found["sizes"] == {str(size): 500}


def test_a_request_of_many_windows(ask: Ask, live: Live, port: int) -> None:
    """786 KB: twelve times what is sent without being asked for more."""
    data = message(3, rows=64)
    try:
        call(live.address, INFER, data)
        code = "0"
    except grpc.RpcError as error:
        code = str(error.code().value[0])
    found = ask(port, data, calls=12, most=4)
    assert found["codes"] == {code: 12}


def test_an_error_is_told(ask: Ask, live: Live, port: int) -> None:
    found = ask(port, b"\xff\xff\xff", calls=20, most=4)
    assert found["codes"] == {"3": 20}
    [text] = found["texts"]
    assert text == "message: is not a inference.ModelInferRequest"


def test_methods_that_are_not_there_and_health(ask: Ask, live: Live, port: int) -> None:
    assert ask(port, b"", method="/inference.GRPCInferenceService/None")["codes"] == {"12": 1}
    assert ask(port, b"", method="/grpc.health.v1.Health/Check")["sizes"] == {"2": 1}


def test_a_deadline_is_kept(ask: Ask, live: Live) -> None:
    data, _ = accepted(live)
    live.model.held.work.clear()
    found = ask(live.server.grpc_port, data, calls=8, most=8, within=0.5)
    live.model.held.work.set()
    assert found["codes"] == {"4": 8}
    # And the connection, or the next one, goes on.
    assert ask(live.server.grpc_port, data)["codes"] == {"0": 1}


# --- REST through proxies -----------------------------------------------------------------------


def test_rest_infer_through_a_proxy(rest: httpx.Client, live: Live) -> None:
    batch = wire(1, 20)
    direct = httpx.post(
        f"http://127.0.0.1:{live.server.rest_port}{REST_INFER}", json={"inputs": [tensor(batch)]}
    )
    expected = values(direct)
    answer = rest.post(REST_INFER, json={"id": "proxied", "inputs": [tensor(batch)]})
    np.testing.assert_array_equal(values(answer), expected)
    assert answer.headers["x-request-id"] == "proxied"
    content, headers = binary(batch, tensor(batch))
    answer = rest.post(REST_INFER, content=content, headers=headers)
    np.testing.assert_array_equal(values(answer), expected)
    with tritonclient.http.InferenceServerClient(rest.base_url.netloc.decode()) as client:
        given = tritonclient.http.InferInput("image", list(batch.shape), "FP32")
        given.set_data_from_numpy(batch)
        result = client.infer("tiny", [given], request_compression_algorithm="gzip")
        np.testing.assert_array_equal(result.as_numpy("logits"), expected)
        assert client.is_model_ready("tiny")


def test_rest_errors_through_a_proxy(rest: httpx.Client) -> None:
    refusal = rest.post(REST_INFER, json={"inputs": [tensor(forged(1))]})
    assert (refusal.status_code, refusal.json()["rows"]) == (403, [0])
    malformed = rest.post(REST_INFER, content=b"{")
    assert (malformed.status_code, malformed.json()["field"]) == (400, "body")
    assert rest.get("/v2/models/cats").status_code == 404
    assert rest.delete("/v2").status_code == 405


def test_rest_many_requests_through_a_proxy(rest: httpx.Client) -> None:
    batch = wire(1, 20)
    content, headers = binary(batch, tensor(batch), parameters={"binary_data_output": True})

    def ask(_: int) -> int:
        return rest.post(REST_INFER, content=content, headers=headers).status_code

    with ThreadPoolExecutor(32) as pool:
        assert set(pool.map(ask, range(300))) == {200}


def test_rest_large_bodies_through_a_proxy(rest: httpx.Client) -> None:
    data = encoded(1200, 900)
    assert len(data) > 3_000_000
    for path in ("predict", "screen"):
        answer = rest.post(f"/firewall/v1/models/tiny:{path}", files={"image": ("a.png", data)})
        assert answer.status_code == 200, answer.text

    def chunks() -> Iterator[bytes]:
        yield from (data[place : place + 50_000] for place in range(0, len(data), 50_000))

    answer = rest.post(
        "/firewall/v1/models/tiny:screen", content=chunks(), headers={"Content-Type": "image/png"}
    )
    assert len(answer.json()["screened"]) == 1


def test_rest_client_that_goes_away_behind_a_proxy(rest: httpx.Client, live: Live) -> None:
    """The proxy closes its connection, and the row that waits is dropped."""
    body = {"inputs": [tensor(wire(1, 20))]}
    live.model.held.work.clear()
    live.model.held.working.clear()
    url = f"http://127.0.0.1:{live.server.rest_port}{REST_INFER}"
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(httpx.post, url, json=body, timeout=60)
        assert live.model.held.working.wait(20)
        with pytest.raises(httpx.ReadTimeout):
            rest.post(REST_INFER, json=body, timeout=1.0)
        for _ in range(500):
            if not live.model.queued_rows:
                break
            time.sleep(0.02)
        assert live.model.queued_rows == 0
        live.model.held.work.set()
        assert first.result(20).status_code == 200
