"""Clients and proxies in other languages, each with an HTTP/2 of its own, before our transport.

Of Debian: golang-go, golang-google-grpc-dev, default-jdk-headless, libgrpc-java, libnetty-java,
nodejs, npm, nginx-light, haproxy, nghttp2-proxy. What is not there is skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from firewall.bundle.store import Bundle
from tests.e2e.test_transports import INFER, SETTINGS, Live, message, outcome
from tests.support.peers import free_ports

pytestmark = pytest.mark.interop

HERE = Path(__file__).resolve().parent
GO = Path("/usr/share/gocode")
JAVA = Path("/usr/share/java")
Ask = Callable[..., dict[str, Any]]


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
    one = Live(tiny, SETTINGS)
    yield one
    one.close()


def nginx(folder: Path, port: int, behind: int) -> list[str]:
    needed("nginx")
    config = folder / "nginx.conf"
    config.write_text(f"""
        daemon off; master_process off; pid {folder}/pid; error_log stderr;
        events {{}}
        http {{
            access_log off; client_max_body_size 64m;
            client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
            fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
            server {{
                listen 127.0.0.1:{port} http2;
                location / {{ grpc_pass grpc://127.0.0.1:{behind}; }}
            }}
        }}
    """)
    return ["nginx", "-p", str(folder), "-c", str(config)]


def haproxy(folder: Path, port: int, behind: int) -> list[str]:
    needed("haproxy")
    config = folder / "haproxy.cfg"
    config.write_text(f"""
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend front
    bind 127.0.0.1:{port} proto h2
    default_backend back
backend back
    server one 127.0.0.1:{behind} proto h2
""")
    return ["haproxy", "-f", str(config), "-db"]


def nghttpx(folder: Path, port: int, behind: int) -> list[str]:
    needed("nghttpx")
    return [
        "nghttpx", "--conf=/dev/null", f"--frontend=127.0.0.1,{port};no-tls",
        f"--backend=127.0.0.1,{behind};;proto=h2", "--workers=1", "--errorlog-file=/dev/stderr",
    ]  # fmt: skip


@pytest.fixture(
    params=[None, nginx, haproxy, nghttpx], ids=["direct", "nginx", "haproxy", "nghttpx"]
)
def port(request: pytest.FixtureRequest, live: Live, tmp_path: Path) -> Iterator[int]:
    """Of the server, or of a proxy in front of it."""
    if request.param is None:
        yield live.server.port
        return
    [front] = free_ports(1)
    command = request.param(tmp_path, front, live.server.port)
    with ExitStack() as stack:
        log = stack.enter_context((tmp_path / "log").open("w"))
        process = subprocess.Popen(command, stdout=log, stderr=log)
        stack.callback(process.wait, 20)
        stack.callback(process.kill)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", front)) == 0:
                    break
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        yield front


def accepted(live: Live) -> tuple[bytes, int]:
    """A request that is answered, and the bytes of its answer."""
    for seed in range(50):
        data = message(seed)
        try:
            return data, len(live.infer(data, timeout=20))
        except grpc.RpcError:
            continue
    raise AssertionError("nothing is accepted")


def test_many_requests(ask: Ask, live: Live, port: int) -> None:
    data, size = accepted(live)
    found = ask(port, data, calls=500, most=32)
    assert found["codes"] == {"0": 500}
    assert found["sizes"] == {str(size): 500}


def test_a_request_of_many_windows(ask: Ask, live: Live, port: int) -> None:
    """786 KB: twelve times what is sent without being asked for more."""
    data = message(3, rows=64)
    expected = outcome(live, data)
    found = ask(port, data, calls=12, most=4)
    code = str(expected.value[0]) if isinstance(expected, grpc.StatusCode) else "0"
    assert found["codes"] == {code: 12}


def test_an_error_is_told(ask: Ask, live: Live, port: int) -> None:
    found = ask(port, b"\xff\xff\xff", calls=20, most=4)
    assert found["codes"] == {"3": 20}
    [text] = found["texts"]
    with pytest.raises(grpc.RpcError) as info:
        live.infer(b"\xff\xff\xff", timeout=20)
    assert text == info.value.details()  # type: ignore[attr-defined]


def test_methods_that_are_not_there_and_health(ask: Ask, live: Live, port: int) -> None:
    assert ask(port, b"", method="/inference.GRPCInferenceService/None")["codes"] == {"12": 1}
    assert ask(port, b"", method="/grpc.health.v1.Health/Check")["sizes"] == {"2": 1}


def test_a_deadline_is_kept(ask: Ask, live: Live) -> None:
    data, _ = accepted(live)
    live.model.hold()
    found = ask(live.server.port, data, calls=8, most=8, within=0.5)
    live.model.go.set()
    assert found["codes"] == {"4": 8}
    # And the connection, or the next one, goes on.
    assert ask(live.server.port, data)["codes"] == {"0": 1}
