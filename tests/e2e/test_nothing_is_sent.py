"""No name but those asked for is looked up, and no identifier of the machine is written."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from firewall.bundle.signing import Signer
from tests.support.namespace import looked_up, possible

pytestmark = pytest.mark.skipif(not possible(), reason="no right to make network namespaces")

#: Serves for a moment, answers its own health, and is told to stop.
_SERVED = """
import signal, subprocess, sys, time
server = subprocess.Popen([sys.executable, "-m", "firewall", "serve", *sys.argv[2:]])
time.sleep(float(sys.argv[1]))
assert server.poll() is None, "the server ended"
server.send_signal(signal.SIGTERM)
sys.exit(server.wait(30))
"""


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """A home that is empty, and no variable that would turn telemetry off."""
    folder = tmp_path / "home"
    folder.mkdir()
    env = {name: "" for name in os.environ if name.startswith(("ORT_", "XDG_", "CI"))}
    return env | {"HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}


def written(home: dict[str, str]) -> list[str]:
    return sorted(path.name for path in Path(home["HOME"]).rglob("*") if path.is_file())


def test_the_name_server_of_the_test_sees_a_question(tmp_path: Path) -> None:
    ask = "import socket\ntry: socket.getaddrinfo('asked.example', 80)\nexcept OSError: pass"
    names, _ = looked_up([sys.executable, "-c", ask], tmp_path)
    assert names == ["asked.example"]


def test_serve_looks_up_no_name(
    tiny_path: Path, signer: Signer, tmp_path: Path, home: dict[str, str]
) -> None:
    key = tmp_path / "signer.pub"
    key.write_text(signer.public)
    names, done = looked_up(
        [sys.executable, "-c", _SERVED, "5", str(tiny_path), "--trust", str(key),
         "--false-positive-rate", "0.05", "--host", "127.0.0.1", "--admin-socket", "off",
         "--grpc-port", "0", "--rest-port", "0", "--operations-port", "0"],
        tmp_path, env=home,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert names == []
    assert written(home) == []


def test_checking_a_bundle_looks_up_no_name(
    tiny_path: Path, signer: Signer, tmp_path: Path, home: dict[str, str]
) -> None:
    key = tmp_path / "signer.pub"
    key.write_text(signer.public)
    names, done = looked_up(
        [sys.executable, "-m", "firewall", "bundle", "verify", str(tiny_path), "--trust", str(key)],
        tmp_path, env=home,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (names, written(home)) == ([], [])
