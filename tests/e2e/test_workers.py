"""Several processes on one port: one dies, one is changed, all stop."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from firewall.bundle.signing import Signer
from firewall.bundle.store import Bundle
from firewall.client import Client
from firewall.client.admin import AdminClient
from firewall.errors import ConfigError, FirewallError, NotReady
from tests.support.served import Served, served
from tests.support.tiny import another, wire


@pytest.fixture(scope="module")
def server(
    tiny_path: Path, signer: Signer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("workers")
    shutil.copytree(tiny_path, folder / "live")
    (folder / "policy.toml").write_text("false_positive_rate = 0.05\n")
    with served(
        folder / "live", signer, folder, "--policy", str(folder / "policy.toml"),
        "--workers", "2",
    ) as running:  # fmt: skip
        yield running


def event(server: Served, name: str) -> list[dict[str, object]]:
    return [one for one in server.events() if one["event"] == name]


def serving(server: Served) -> dict[str, int]:
    [found] = event(server, "serving")
    return found  # type: ignore[return-value]


@pytest.fixture
def admin(server: Served) -> Iterator[AdminClient]:
    with AdminClient(str(server.admin)) as client:
        yield client


def total(server: Served, name: str) -> float:
    """A metric added up over its labels."""
    with urllib.request.urlopen(f"{server.operations}/metrics") as page:
        families = text_string_to_metric_families(page.read().decode())
    return sum(
        sample.value for family in families for sample in family.samples if sample.name == name
    )


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    waited = threading.Event()
    for _ in range(int(seconds / 0.1)):
        if condition():
            return
        waited.wait(0.1)
    raise AssertionError("it did not come to pass")


def ask(server: Served) -> str:
    """Over a connection of its own, which the kernel gives to one of the workers."""
    with Client(server.address) as client:
        client.predict(wire(1, 20))
        return str(client.describe().version)


def test_page_adds_up_the_metrics_of_all_workers(server: Served) -> None:
    ask(server)
    assert total(server, "firewall_workers") == 2
    assert total(server, "firewall_ready") == 1
    before = total(server, "firewall_rows_total")
    for _ in range(10):
        ask(server)
    assert total(server, "firewall_rows_total") == before + 10


def test_rest_port_is_shared_too(server: Served) -> None:
    for _ in range(8):
        with urllib.request.urlopen(f"{server.rest}/v2/models/tiny") as answer:
            assert json.loads(answer.read())["name"] == "tiny"


def test_a_change_is_made_by_all_or_by_none(
    server: Served, admin: AdminClient, tiny: Bundle, signer: Signer, tmp_path: Path
) -> None:
    second = another(tiny, tmp_path / "second", signer, version="2")
    assert admin.reload(path=str(second)).version == "2"
    assert {ask(server) for _ in range(12)} == {"2"}
    with pytest.raises(ConfigError, match="no such directory"):
        admin.reload(path="nowhere")
    assert {ask(server) for _ in range(12)} == {"2"}
    changes = [one for one in event(server, "changed") if one["change"] == "reload"]
    assert [one["who"] for one in changes] == ["socket"] * 2
    started = admin.start_shadow(str(second), 100)
    assert started.shadow.version == "2"
    for _ in range(10):
        ask(server)
    # Of both together.
    until(lambda: admin.status()[0].shadow.rows == 10)
    admin.drop_shadow()


def test_a_worker_that_dies_is_replaced_and_serves_what_the_others_do(
    server: Served, admin: AdminClient, tiny: Bundle, signer: Signer, tmp_path: Path
) -> None:
    third = another(tiny, tmp_path / "third", signer, version="3")
    admin.reload(path=str(third))
    stop, wrong = threading.Event(), []
    answered = [0]

    def steadily() -> None:
        with Client(server.address) as client:
            while not stop.is_set():
                try:
                    assert client.predict(wire(1, 20))
                    answered[0] += 1
                except NotReady:
                    continue  # UNAVAILABLE is what the worker's own connections may be told
                except (FirewallError, AssertionError) as error:
                    wrong.append(repr(error))

    threads = [threading.Thread(target=steadily) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: answered[0] > 20)
        pids = children(server.process.pid)
        assert len(pids) == 2
        os.kill(pids[0], signal.SIGKILL)
        until(lambda: bool(event(server, "worker started")))
        [ended] = event(server, "worker ended")
        assert (ended["pid"], ended["status"]) == (pids[0], -signal.SIGKILL)
        before = answered[0]
        until(lambda: answered[0] > before + 20)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert wrong == []
    assert total(server, "firewall_workers") == 2
    assert total(server, "firewall_worker_restarts") == 1
    # The new one was told of the reload.
    assert {ask(server) for _ in range(12)} == {"3"}


def children(pid: int) -> list[int]:
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True
    )
    return [int(one) for one in found.stdout.split()]


def test_sighup_goes_to_all_and_sigterm_stops_all(
    tiny_path: Path, signer: Signer, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("false_positive_rate = 0.05\n")
    with served(tiny_path, signer, tmp_path, "--policy", str(policy), "--workers", "2") as running:
        pids = children(running.process.pid)
        policy.write_text("false_positive_rate = 0.05\nmode = 'monitor'\n")
        running.process.send_signal(signal.SIGHUP)
        until(lambda: len(event(running, "changed")) == 2)
        assert running.terminate() == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
        assert running.events()[-1]["event"] == "stopped"


def test_workers_whose_supervisor_is_killed_stop_as_well(
    tiny_path: Path, signer: Signer, tmp_path: Path
) -> None:
    with served(
        tiny_path, signer, tmp_path, "--false-positive-rate", "0.05", "--workers", "2"
    ) as running:
        pids = children(running.process.pid)
        running.process.kill()
        running.process.wait(10)
        until(lambda: not any(alive(pid) for pid in pids))


def alive(pid: int) -> bool:
    """Whether it runs; one that ended and that nobody has asked about does not."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_what_is_wrong_is_said_once_and_with_its_status(server: Served, tiny_path: Path) -> None:
    def start(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "firewall", "serve", "--workers", "2", "--host", "127.0.0.1",
             "--rest-port", "0", "--operations-port", "0", *arguments],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    done = start("nowhere", "--grpc-port", "0")
    assert done.returncode == 1
    assert done.stderr.count("nowhere: no such directory") == 1
    assert "Traceback" not in done.stderr
    taken = start(str(tiny_path), "--grpc-port", str(server.grpc_port))
    assert taken.returncode == 2
    assert "cannot be bound; is it in use?" in taken.stderr
