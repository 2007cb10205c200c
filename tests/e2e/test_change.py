"""Reload, rollback, policy and shadow of a real server, under load that never fails."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from firewall.bundle.signing import Signer
from firewall.bundle.store import Bundle
from firewall.cli.app import app
from firewall.client import Client
from firewall.client.admin import AdminClient
from firewall.errors import ConfigError, FirewallError, InvalidInput, NotFound
from firewall.screening.verdict import Verdict
from tests.support.served import FREE_PORTS, Served, served
from tests.support.tiny import another, forged, wire

POLICY = "false_positive_rate = 0.05\n"


@pytest.fixture(scope="module")
def server(
    tiny_path: Path, signer: Signer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """Serves a copy that lies in its folder, and looks at it."""
    folder = tmp_path_factory.mktemp("change")
    shutil.copytree(tiny_path, folder / "live")
    (folder / "policy.toml").write_text(POLICY)
    with served(
        folder / "live", signer, folder, "--policy", str(folder / "policy.toml"),
        "--watch",
    ) as running:  # fmt: skip
        yield running


@pytest.fixture
def admin(server: Served) -> Iterator[AdminClient]:
    with AdminClient(place(server), timeout=60) as client:
        yield client


def place(server: Served) -> str:
    [serving] = [one for one in server.events() if one["event"] == "serving"]
    return str(serving["admin"])


@contextmanager
def load(server: Served, least: int = 5) -> Iterator[None]:
    """Three clients that ask and ask; every answer is right, and none fails."""
    stop, answers, failures = threading.Event(), [0, 0, 0], []

    def ask(number: int) -> None:
        x = wire(1, 20)
        with Client(server.address) as client:
            while not stop.is_set():
                try:
                    [one] = client.predict(x)
                    assert one.labels, one
                    answers[number] += 1
                except (FirewallError, AssertionError) as error:
                    failures.append(repr(error))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: min(answers) >= least)
        before = list(answers)
        yield
        until(lambda: all(now > then + least for now, then in zip(answers, before, strict=True)))
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert failures == []


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    waited = threading.Event()
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        waited.wait(0.05)
    raise AssertionError("it did not come to pass")


def version(server: Served) -> str:
    with Client(server.address) as client:
        return str(client.describe().version)


def replace_folder(new: Path, target: Path) -> None:
    """As an operator would: the old one away, the new one in its place."""
    target.rename(target.with_name(target.name + "-old"))
    shutil.copytree(new, target)
    shutil.rmtree(target.with_name(target.name + "-old"))


def test_reload_and_rollback_fail_no_request(
    server: Served, admin: AdminClient, tiny: Bundle, signer: Signer, tmp_path: Path
) -> None:
    live = server.audit.parent / "live"
    second = another(tiny, tmp_path / "second", signer, version="2")
    with load(server):
        done = admin.reload(path=str(second))
        assert (done.version, done.changed, done.before.version) == ("2", True, "1")
        assert version(server) == "2"
        assert not admin.reload(path=str(second)).changed
        done = admin.rollback()
        assert (done.version, done.before.version) == ("1", "2")
        assert admin.rollback().version == "2"
        with pytest.raises(ConfigError, match="version '1' is older than '2'"):
            admin.reload(path=str(live))
        assert admin.reload(path=str(live), allow_downgrade=True).version == "1"
    [event] = [one for one in server.events() if one.get("change") == "reload"][:1]
    assert event["event"] == "changed"
    assert event["who"] == "socket"
    assert event["before"]["bundle"] == tiny.digest
    assert event["bundle"] != tiny.digest


def spoil_manifest(folder: Path) -> None:
    (folder / "labels.json").write_text("[]")


def spoil_signature(folder: Path) -> None:
    (folder / "signature.json").unlink()


@pytest.mark.parametrize(
    ("changes", "spoil", "words"),
    [
        ({"version": "2"}, spoil_manifest, "labels.json: "),
        ({"version": "2"}, spoil_signature, "signature.json: missing"),
        ({"name": "other"}, None, "bundle, name: other; clients of 'tiny' count on tiny"),
    ],
)
def test_a_bad_bundle_leaves_the_old_one_serving_and_says_why(
    changes: dict[str, str],
    spoil: Callable[[Path], None] | None,
    words: str,
    server: Served,
    admin: AdminClient,
    tiny: Bundle,
    signer: Signer,
    tmp_path: Path,
) -> None:
    folder = another(tiny, tmp_path / "new", signer, **changes)
    if spoil is not None:
        spoil(folder)
    live = admin.status()[0].bundle
    with pytest.raises(ConfigError, match=words):
        admin.reload(path=str(folder))
    assert admin.status()[0].bundle == live
    refused = [one for one in server.events() if one["event"] == "refused"][-1]
    assert (refused["change"], refused["who"]) == ("reload", "socket")
    assert words in refused["why"]


def test_a_bundle_of_a_signer_whom_nobody_trusts_is_refused(
    server: Served, admin: AdminClient, tiny: Bundle, tmp_path: Path
) -> None:
    folder = another(tiny, tmp_path / "new", Signer.generate(), version="2")
    with pytest.raises(ConfigError, match="which is not trusted"):
        admin.reload(path=str(folder))


def test_a_policy_changes_and_one_that_cannot_be_kept_does_not(
    server: Served, admin: AdminClient
) -> None:
    with load(server), Client(server.address) as client:
        assert client.predict(forged(1))[0].verdict is Verdict.REJECT
        assert admin.set_policy(POLICY + "mode = 'monitor'").mode == "monitor"
        assert client.predict(forged(1))[0].verdict is Verdict.FLAG
        for text, words in (
            ("false_positive_rate = 0.0001", "0.0001"),
            ("paranoia = 4\nfalse_positive_rate = 0.05", "certificates"),
            ("mode = 'block'", "key 'mode'"),
            ("mode = ", "not TOML"),
        ):
            with pytest.raises(ConfigError, match=words):
                admin.set_policy(text)
        assert client.predict(forged(1))[0].verdict is Verdict.FLAG
        assert admin.set_policy().mode == "enforce"
        assert client.predict(forged(1))[0].verdict is Verdict.REJECT


def test_a_candidate_sees_traffic_is_compared_and_promoted(
    server: Served, admin: AdminClient, tiny: Bundle, signer: Signer, tmp_path: Path
) -> None:
    third = another(tiny, tmp_path / "third", signer, version="3")
    with pytest.raises(ConfigError, match="no candidate"):
        admin.promote_shadow()
    for percent in (0.0, 100.5, float("nan")):
        with pytest.raises(ConfigError, match="percent"):
            admin.start_shadow(str(third), percent)
    with load(server):
        started = admin.start_shadow(str(third), 100)
        assert (started.version, started.shadow.version) == ("1", "3")
        until(lambda: admin.status()[0].shadow.rows >= 5)
        compared = admin.status()[0].shadow
        # It is the same guard under another number.
        assert (compared.verdicts_differ, compared.labels_differ, compared.failed) == (0, 0, 0)
        admin.drop_shadow()
        assert not admin.status()[0].HasField("shadow")
        admin.start_shadow(str(third), 50)
        done = admin.promote_shadow()
        assert (done.version, done.before.version) == ("3", "1")
        assert not done.HasField("shadow")
        assert admin.rollback().version == "1"


def test_files_that_change_are_served_and_broken_ones_are_not(
    server: Served, tiny: Bundle, signer: Signer, tmp_path: Path
) -> None:
    folder = server.audit.parent
    with load(server):
        new = another(tiny, tmp_path / "fourth", signer, version="4")
        replace_folder(new, folder / "live")
        until(lambda: version(server) == "4")
        (folder / "policy.toml").write_text(POLICY + "mode = 'nonsense'\n")
        until(lambda: refused(server, "policy"))
        (folder / "policy.toml").write_text(POLICY + "mode = 'monitor'\n")
        until(lambda: describe(server).mode == "monitor")
        (folder / "policy.toml").write_text(POLICY)
        until(lambda: describe(server).mode == "enforce")


def refused(server: Served, change: str) -> bool:
    return any(
        one["event"] == "refused" and one["change"] == change and one["who"] == "watch"
        for one in server.events_so_far()
    )


def describe(server: Served) -> object:
    with Client(server.address) as client:
        return client.describe()


def test_sighup_reads_everything_again(
    tiny_path: Path, tiny: Bundle, signer: Signer, tmp_path: Path
) -> None:
    shutil.copytree(tiny_path, tmp_path / "live")
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY)
    with served(tmp_path / "live", signer, tmp_path, "--policy", str(policy)) as running:
        replace_folder(another(tiny, tmp_path / "new", signer, version="2"), tmp_path / "live")
        policy.write_text(POLICY + "mode = 'monitor'\n")
        with load(running):
            running.process.send_signal(signal.SIGHUP)
            until(lambda: version(running) == "2")
        assert describe(running).mode == "monitor"  # type: ignore[attr-defined]
        assert running.terminate() == 0


def test_what_cannot_be_understood_is_said(admin: AdminClient) -> None:
    with pytest.raises(NotFound, match="'other' is not served"):
        admin.reload(model="other")
    with pytest.raises(InvalidInput, match="path"):
        admin.start_shadow("", 10)
    with pytest.raises(InvalidInput, match="NUL"):
        admin.reload(path="a\0b")
    with pytest.raises(ConfigError, match="no such directory"):
        admin.reload(path="nowhere")


def test_the_commands(server: Served, tmp_path: Path) -> None:
    run, there = CliRunner(), ["admin", "--address", place(server)]
    shown = run.invoke(app, [*there, "status", "--json"])
    assert json.loads(shown.stdout)["model"] == "tiny"
    assert json.loads(shown.stdout)["changed"] is False
    said = run.invoke(app, [*there, "status"]).stdout
    assert "ready, enforce" in said
    assert "before: " in said
    monitor = tmp_path / "monitor.toml"
    monitor.write_text(POLICY + "mode = 'monitor'\n")
    assert "ready, monitor" in run.invoke(app, [*there, "policy", str(monitor)]).stdout
    assert "ready, enforce" in run.invoke(app, [*there, "rollback"]).stdout
    (tmp_path / "wrong.toml").write_text("mode = 'block'\n")
    wrong = run.invoke(app, [*there, "policy", str(tmp_path / "wrong.toml")])
    assert isinstance(wrong.exception, ConfigError)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--admin-port", "0", "--admin-host", "0.0.0.0"], "0.0.0.0 is no loopback address"),
        (["--admin-port", "0"], "--admin-token-file, or mutual TLS"),
        (["--tls-cert", "x.pem"], "--tls-cert and --tls-key belong together"),
        (["--tls-cert", "x.pem", "--tls-key", "y.pem"], "cannot be read"),
        (["--tokens", "nothing.toml"], "nothing.toml cannot be read"),
        (["--allow-anonymous"], "--allow-anonymous: is for --tokens"),
    ],
)
def test_settings_that_cannot_be_are_one_clear_line(
    options: list[str], words: str, tiny_path: Path, signer: Signer, tmp_path: Path
) -> None:
    key = tmp_path / "signer.pub"
    key.write_text(signer.public)
    common = ["serve", str(tiny_path), "--trust", str(key), *FREE_PORTS,
              "--false-positive-rate", "0.05"]  # fmt: skip
    done = CliRunner().invoke(app, [*common, *options])
    assert isinstance(done.exception, ConfigError)
    assert words in str(done.exception)
