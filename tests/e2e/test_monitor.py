"""Queries that are remembered: by one server, and by two that share a Redis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from firewall.bundle.signing import Signer
from firewall.cli.app import app
from firewall.client import Client, OpenInferenceClient, Prediction
from firewall.errors import Refused
from firewall.screening.policy import Policy
from firewall.screening.verdict import Verdict
from tests.support.redis import Redis
from tests.support.served import FREE_PORTS, Served, served
from tests.support.tiny import pixels, wire

POLICY = """
false_positive_rate = 0.05
[[monitors]]
name = "queries"
plugin = "query-similarity"
threshold = 5
"""


def clean(client: Client) -> np.ndarray:
    """An image that the guard accepts."""
    for seed in range(20, 40):
        x = wire(1, seed)
        if client.predict(x)[0].verdict is Verdict.ACCEPT:
            return x
    raise AssertionError("the guard accepts nothing")


def nearby(x: np.ndarray, number: int) -> np.ndarray:
    """Another image that differs in three pixels: a question of a search."""
    other = x.copy()
    rng = np.random.default_rng(number)
    other[0, :, rng.integers(32, size=3), rng.integers(32, size=3)] += 0.05
    return other.clip(0, 1)


def ask(client: Client, x: np.ndarray, first: int, count: int) -> list[Prediction]:
    return [client.predict(nearby(x, number))[0] for number in range(first, first + count)]


@pytest.fixture(scope="module")
def server(
    tiny_path: Path, signer: Signer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Served, list[str]]]:
    """Knows two clients by their tokens."""
    folder = tmp_path_factory.mktemp("monitor")
    (folder / "policy.toml").write_text(POLICY)
    drawn = [CliRunner().invoke(app, ["token", name]) for name in ("first", "second")]
    (folder / "tokens.toml").write_text("[clients]\n" + "".join(one.stdout for one in drawn))
    secrets = [one.stderr.rpartition(" ")[2].strip() for one in drawn]
    with served(
        tiny_path, signer, folder, "--policy", str(folder / "policy.toml"),
        "--tokens", str(folder / "tokens.toml"),
    ) as running:  # fmt: skip
        yield running, secrets


def test_a_search_is_refused_and_a_retry_and_another_client_are_not(
    server: tuple[Served, list[str]],
) -> None:
    running, (first, second) = server
    with Client(running.address, token=first) as client:
        x = clean(client)
        assert {client.predict(x)[0].verdict for _ in range(12)} == {Verdict.ACCEPT}
        found = ask(client, x, 0, 12)
        assert [one.verdict for one in found[:3]] == [Verdict.ACCEPT] * 3
        assert [one.verdict for one in found[-5:]] == [Verdict.REJECT] * 5
        assert all("queries" in one.reasons for one in found[-5:])
        # Without labels, and without the count: that is what an attacker would steer by.
        assert all(not one.labels and not one.statistics for one in found[-5:])
    plain = OpenInferenceClient(running.address, model="tiny", token=first)
    with plain, pytest.raises(Refused):
        plain.infer({"image": nearby(x, 100)})
    with Client(running.address, token=second) as other:
        assert "queries" not in ask(other, x, 200, 1)[0].reasons
    lines = [one for one in running.events() if "queries" in one.get("reasons", ())]
    assert len(lines) >= 6
    assert lines[-1]["client"] == "token:first"
    assert lines[-1]["statistics"]["queries"] >= 5


def test_replicas_share_what_they_remember_and_a_store_that_is_down_is_a_fault(
    tiny_path: Path, signer: Signer, tmp_path: Path
) -> None:
    redis = Redis(tmp_path)
    redis.start()
    try:
        with ExitStack() as stack:
            clients = []
            for name in ("one", "two"):
                folder = tmp_path / name
                folder.mkdir()
                (folder / "policy.toml").write_text(POLICY)
                running = stack.enter_context(
                    served(
                        tiny_path, signer, folder, "--policy", str(folder / "policy.toml"),
                        "--state", redis.url, "--state-key", str(tmp_path / "state.key"),
                    )
                )  # fmt: skip
                clients.append(stack.enter_context(Client(running.address)))
            one, two = clients
            x = clean(one)
            for number in range(8):
                ask(one, x, number, 1)
            # The second one has been asked nothing like it.
            assert "queries" in ask(two, x, 100, 1)[0].reasons
            redis.stop()
            [down] = ask(one, x, 101, 1)
            assert (down.verdict, down.reasons) == (Verdict.REJECT, ("fault",))
            redis.start()
            assert one.predict(wire(1, 77))[0].reasons != ("fault",)
            # It came back empty, and remembers again.
            assert "queries" not in ask(two, x, 102, 1)[0].reasons
            for number in range(103, 112):
                ask(two, x, number, 1)
            assert "queries" in ask(one, x, 112, 1)[0].reasons
    finally:
        redis.stop()


def test_a_section_for_the_policy_is_measured_and_can_be_read_back(
    tiny_path: Path, signer: Signer, tmp_path: Path
) -> None:
    (tmp_path / "signer.pub").write_text(signer.public)
    np.savez(tmp_path / "clean.npz", x=pixels(80, 5))
    done = CliRunner().invoke(
        app,
        ["calibrate-monitor", str(tmp_path / "clean.npz"), "--bundle", str(tiny_path), "--trust",
         str(tmp_path / "signer.pub"), "--requests", "400", "--false-alarms", "0.01",
         "--name", "near", "--config", '{"fingerprint": "thumbnail", "seconds": 60}'],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    [found] = Policy.parse(done.stdout).monitors
    assert (found.name, found.plugin) == ("near", "query-similarity")
    assert found.threshold >= 1
    assert found.config["seconds"] == 60
    assert "false alarms: " in done.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (POLICY.replace("query-similarity", "other"), "monitor 'other' is not installed"),
        (POLICY.replace("queries", "noise-floor"), "'noise-floor' is the name of a detector"),
        (POLICY + "config = { window = 3 }", "key 'window'"),
    ],
)
def test_a_monitor_that_cannot_be_is_one_clear_line(
    text: str, words: str, tiny_path: Path, signer: Signer, tmp_path: Path
) -> None:
    (tmp_path / "signer.pub").write_text(signer.public)
    (tmp_path / "policy.toml").write_text(text)
    done = CliRunner().invoke(
        app,
        ["serve", str(tiny_path), "--trust", str(tmp_path / "signer.pub"), *FREE_PORTS,
         "--policy", str(tmp_path / "policy.toml")],
    )  # fmt: skip
    assert words in str(done.exception)
