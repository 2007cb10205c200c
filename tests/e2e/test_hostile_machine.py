"""Machines as newcomers have them: no home, no name, ASCII terminals, full disks, few cores.

Each command is run in a process of its own with all of it at once, and ends with its result or with
one sentence.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from firewall.bundle.signing import Signer
from firewall.testing import images
from tests.support import locked_room
from tests.support.served import FREE_PORTS
from tests.support.tiny import write_tiny_onnx

ROOT = Path(__file__).parents[2]
#: Becomes a user that no machine has an entry for, as OpenShift draws them.
NOBODY = ("unshare", "--user", "--map-user=1234567890", "--map-group=1234567890")


def can_be_nobody() -> bool:
    return shutil.which("unshare") is not None and (
        subprocess.run([*NOBODY, "true"], capture_output=True, check=False).returncode == 0
    )


def run(
    *arguments: str, cwd: Path, as_user: tuple[str, ...] = (), home: str | None = None
) -> subprocess.CompletedProcess[str]:
    """A command with next to no environment."""
    env = {
        "PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "plugins")]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    if home is not None:
        env["HOME"] = home
    return subprocess.run(
        [*as_user, sys.executable, "-m", "firewall", *arguments],
        capture_output=True, text=True, encoding="utf-8", errors="replace", check=False,
        cwd=cwd, env=env, timeout=240,
    )  # fmt: skip


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """What a failed command said: one line and no traceback."""
    assert done.returncode in (1, 2), done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    [line] = [one for one in done.stderr.splitlines() if one.startswith("firewall: ")]
    return line


@pytest.fixture
def place(tiny_path: Path, signer: Signer, tmp_path: Path) -> Path:
    """A bundle, its key and pictures, in a folder that everyone may read."""
    shutil.copytree(tiny_path, tmp_path / "bundle")
    (tmp_path / "signer.pub").write_text(signer.public)
    pixels = (images(2)[1].numpy().transpose(1, 2, 0) * 255).astype(np.uint8)
    for name in ("cat.png", "\N{CAT FACE} caf\N{LATIN SMALL LETTER E WITH ACUTE}.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    # A name that is no text in any encoding.
    with open(os.fsencode(tmp_path) + b"/bytes-\xff\xfe.png", "wb") as file:
        file.write((tmp_path / "cat.png").read_bytes())
    (tmp_path / "broken \N{SNOWMAN}.png").write_bytes(b"no picture")
    (tmp_path / "policy.toml").write_text(
        "\N{ZERO WIDTH NO-BREAK SPACE}false_positive_rate = 0.05\n"
    )
    return tmp_path


@pytest.mark.parametrize("as_json", [(), ("--json",)], ids=["text", "json"])
def test_names_that_the_terminal_lacks_end_nothing(place: Path, as_json: tuple[str, ...]) -> None:
    done = run(
        "screen", str(place), "--bundle", str(place / "bundle"), "--trust",
        str(place / "signer.pub"), "--policy", str(place / "policy.toml"), *as_json, cwd=place,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert len(done.stdout.splitlines()) >= 4, done.stdout + done.stderr
    assert "cat.png" in done.stdout


@pytest.mark.skipif(not can_be_nobody(), reason="no right to make user namespaces")
def test_a_user_without_home_and_name_needs_neither_where_paths_are_given(place: Path) -> None:
    bundle = ("--trust", str(place / "signer.pub"))
    done = run("bundle", "verify", str(place / "bundle"), *bundle, cwd=place, as_user=NOBODY)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in place.iterdir() if path.name.startswith("~")) == []
    done = run("bundle", "verify", str(place / "bundle"), cwd=place, as_user=NOBODY)
    assert "this user has no home folder; set FIREWALL_CONFIG_DIR" in sentence(done)
    done = run("screen", str(place / "cat.png"), *bundle, cwd=place, as_user=NOBODY)
    assert "this user has no home folder; set FIREWALL_CACHE_DIR" in sentence(done)


@pytest.mark.skipif(not can_be_nobody(), reason="no right to make user namespaces")
def test_a_server_of_such_a_user_on_one_core_without_network(place: Path) -> None:
    """No address but loopback, neither name nor home, one core of several, an ASCII terminal."""
    command = [
        "unshare", "--user", "--map-user=1234567890", "--map-group=1234567890", "--net",
        "taskset", "-c", "0", sys.executable, "-m", "firewall", "serve", str(place / "bundle"),
        "--trust", str(place / "signer.pub"), "--policy", str(place / "policy.toml"),
        "--audit-log", str(place / "audit.jsonl"), "--admin-socket", "off", *FREE_PORTS,
    ]  # fmt: skip
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        command, cwd=place, env=env, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    audit = place / "audit.jsonl"
    try:
        for _ in range(600):
            if process.poll() is not None or (audit.exists() and "serving" in audit.read_text()):
                break
            time.sleep(0.1)
    finally:
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    [event] = [json.loads(line) for line in audit.read_text().splitlines()
               if '"serving"' in line]  # fmt: skip
    assert (event["cores"], event["inference_threads"]) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("attack", "NET", "CAT", "--shape", "3,32,32", "--out", "full.npy"),
            "No space left on device",
        ),
        (
            (
                "evaluate",
                "NET",
                "--data",
                "data.npz",
                "--suite",
                "static",
                "--eps",
                "0.1",
                "--out",
                "/sys/out",
            ),
            "cannot be written: ",
        ),
        (("quarantine", "list", "nowhere.db"), "nowhere.db does not exist"),
        (("predict", "CAT", "--address", "http://localhost:1"), "has the scheme 'http'"),
        (("evaluate", "NET", "--data", "plain.npy"), "is not an .npz file of plain arrays"),
        (("evaluate", "NET", "--data", "data.npz", "--eps", "8"), "8/255 is 0.0314"),
        (("attack", "NET", "CAT", "--eps", "inf"), "expected a positive, finite radius"),
        (("serve", "BUNDLE", "--policy", "latin.toml"), "is not UTF-8 text (byte 0xe9"),
    ],
)
def test_the_system_s_own_errors_are_one_sentence(
    arguments: tuple[str, ...], words: str, place: Path
) -> None:
    (place / "full.npy").symlink_to("/dev/full")
    np.save(place / "plain.npy", images(4).numpy())
    np.savez(place / "data.npz", x=images(4).numpy(), y=np.arange(4) % 10)
    (place / "latin.toml").write_bytes(
        "# caf\N{LATIN SMALL LETTER E WITH ACUTE}\n".encode("latin-1")
    )
    names = {
        "NET": str(write_tiny_onnx(place / "net.onnx")), "CAT": str(place / "cat.png"),
        "BUNDLE": str(place / "bundle"),
    }  # fmt: skip
    done = run(*(names.get(one, one) for one in arguments), cwd=place, home=str(place))
    assert words in sentence(done)


#: Serves, asks itself over IPv6, and stops.
_ASKED = """
import json, subprocess, sys, time
from pathlib import Path
from firewall.client import Client
from tests.support.tiny import wire
server = subprocess.Popen([sys.executable, "-m", "firewall", "serve", *sys.argv[1:]])
audit = Path("audit.jsonl")
for _ in range(600):
    if server.poll() is not None or (audit.exists() and '"serving"' in audit.read_text()):
        break
    time.sleep(0.1)
serving = json.loads(audit.read_text().splitlines()[0])
with Client(f"[::1]:{serving['grpc_port']}", timeout=30) as client:
    print(len(client.predict(wire(2, 20))), "answered")
server.terminate()
sys.exit(server.wait(60))
"""


@pytest.fixture
def room(place: Path) -> dict[str, str]:
    """Next to no environment, and what needs a folder has one."""
    np.savez(place / "data.npz", x=images(6).numpy(), y=np.arange(6) % 10)
    write_tiny_onnx(place / "net.onnx")
    return {
        "PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONUTF8": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "FIREWALL_CONFIG_DIR": str(place / "config"), "FIREWALL_CACHE_DIR": str(place / "cache"),
        "TMPDIR": str(place),
    }  # fmt: skip


@pytest.mark.skipif(not locked_room.possible(), reason="no right to make namespaces")
@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("-m", "firewall", "screen", "cat.png", "--bundle", "bundle", "--trust", "signer.pub",
          "--policy", "policy.toml"), "cat.png"),
        (("-m", "firewall", "evaluate", "net.onnx", "--data", "data.npz", "--suite", "static",
          "--eps", "0.1", "--steps", "3", "--out", "out"), "robust accuracy, worst case"),
        (("-c", _ASKED, "bundle", "--trust", "signer.pub", "--policy", "policy.toml",
          "--audit-log", "audit.jsonl", "--admin-socket", "off", *FREE_PORTS), "2 answered"),
    ],
    ids=["screen", "evaluate", "serve"],
)  # fmt: skip
def test_a_locked_room(
    command: tuple[str, ...], words: str, place: Path, room: dict[str, str]
) -> None:
    """A read-only root, a tiny /dev/shm, loopback only, one core, no HOME, an ASCII terminal."""
    done = locked_room.run(place, sys.executable, *command, env=room)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    assert words in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not locked_room.possible(), reason="no right to make namespaces")
def test_the_demo_in_a_locked_room(place: Path, room: dict[str, str]) -> None:
    done = locked_room.run(place, sys.executable, "-m", "firewall", "demo", env=room, seconds=580)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    assert "reject" in done.stdout
