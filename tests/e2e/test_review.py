"""Quarantine through the admin service: of one process, and of several."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from firewall.bundle.signing import Signer
from firewall.client import Client
from firewall.client.admin import AdminClient
from firewall.errors import ConfigError, InvalidInput
from firewall.screening.verdict import Verdict
from tests.support.command import command
from tests.support.served import Served, served
from tests.support.tiny import SIDE, forged

POLICY = """
false_positive_rate = 0.05
[[exclusions]]
id = "known-noise"
detector = "noise-floor"
"""


@pytest.fixture(scope="module", params=[1, 2])
def keeping(
    request: pytest.FixtureRequest,
    tiny_path: Path,
    signer: Signer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Served, AdminClient, str]]:
    folder = tmp_path_factory.mktemp(f"review-{request.param}")
    (folder / "policy.toml").write_text(POLICY)
    with served(
        tiny_path, signer, folder, "--policy", str(folder / "policy.toml"), "--workers",
        str(request.param), "--quarantine", str(folder / "q.db"),
        "--quarantine-key", str(folder / "key"),
    ) as server:  # fmt: skip
        with Client(server.address) as client:
            for row in range(3):
                x = forged(1) * np.float32(1 - 0.05 * row)
                assert client.predict(x)[0].verdict is Verdict.REJECT
        [said] = [one for one in server.events() if one["event"] == "serving"]
        address = str(said["admin"])
        with AdminClient(address) as admin:
            for _ in range(200):
                if len(admin.quarantine()) == 3:
                    break
                time.sleep(0.05)
            yield server, admin, address


def test_rows_are_listed_newest_first_by_pages(
    keeping: tuple[Served, AdminClient, str],
) -> None:
    server, admin, _ = keeping
    rows = admin.quarantine()
    assert [row.id for row in rows] == [3, 2, 1]
    assert [row.id for row in admin.quarantine(limit=2)] == [3, 2]
    assert [row.id for row in admin.quarantine(limit=2, before=2)] == [1]
    assert admin.quarantine(model="other") == []
    events = {one["request_id"]: one for one in server.events() if one["event"] == "verdict"}
    assert {row.request_id for row in rows} == set(events)
    for row in rows:
        told = events[row.request_id]
        assert list(row.reasons) == told["reasons"]
        assert told["exclusions"] == ["known-noise"]
        assert "noise-floor" not in row.statistics
        assert not row.HasField("label")
        # A pseudonym.
        assert row.client
        assert "127" not in row.client[:3]


def test_a_row_has_the_image_that_was_sent(keeping: tuple[Served, AdminClient, str]) -> None:
    first = keeping[1].quarantined(1)
    with Image.open(io.BytesIO(first.png)) as image:
        assert image.size == (SIDE, SIDE)
        pixels = np.asarray(image).transpose(2, 0, 1)
    assert np.array_equal(pixels, (forged(1)[0] * 255).round().astype(np.uint8))


def test_people_label_and_it_is_written_down_who(
    keeping: tuple[Served, AdminClient, str],
) -> None:
    server, admin, _ = keeping
    assert [row.id for row in admin.quarantine(reviewed=False)] == [3, 2, 1]
    done = admin.label(2, "class 3")
    assert (done.label, done.reviewer) == ("class 3", "socket")
    assert [row.id for row in admin.quarantine(reviewed=True)] == [2]
    assert [row.id for row in admin.quarantine(reviewed=False)] == [3, 1]
    told = [one for one in server.events() if one["event"] == "labelled"]
    assert (told[0]["id"], told[0]["label"], told[0]["who"]) == (2, "class 3", "socket")


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda admin: admin.quarantined(99), "99 is not in quarantine"),
        (lambda admin: admin.label(99, "cat"), "99 is not in quarantine"),
        (lambda admin: admin.label(1, "c" * 300), "300 characters"),
        (lambda admin: admin.quarantine(limit=2000), "at most 1000"),
        (lambda admin: admin.quarantine(client="c" * 200), "at most 128"),
        (lambda admin: admin.forget(""), "is empty"),
    ],
)
def test_what_cannot_be_is_said(
    keeping: tuple[Served, AdminClient, str], ask: object, words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        ask(keeping[1])  # type: ignore[operator]


def test_the_commands_and_forgetting(
    keeping: tuple[Served, AdminClient, str], tmp_path: Path
) -> None:
    _, admin, address = keeping
    ask = ("admin", "--address", address, "quarantine")
    listed = command(*ask, "list", "--json")
    rows = [json.loads(line) for line in listed.stdout.splitlines()]
    assert [int(row["id"]) for row in rows] == [3, 2, 1]
    assert "reject" in command(*ask, "list").stdout
    shown = command(*ask, "show", "1", "--out", str(tmp_path / "one.png"))
    assert shown.returncode == 0, shown.stderr
    with Image.open(tmp_path / "one.png") as image:
        assert image.size == (SIDE, SIDE)
    assert command(*ask, "label", "3", "").stdout.rstrip().endswith("none of the classes")
    assert "5 is not in quarantine" in command(*ask, "label", "5", "cat").stderr
    assert f"{rows[0]['client']}: 3 rows removed" in (
        command(*ask, "forget", rows[0]["client"]).stdout
    )
    assert admin.quarantine() == []


def test_without_a_quarantine_it_says_so(tiny_path: Path, signer: Signer, tmp_path: Path) -> None:
    with (
        served(tiny_path, signer, tmp_path) as server,
        AdminClient(str(server.admin)) as admin,
        pytest.raises(ConfigError, match="serve with --quarantine"),
    ):
        admin.quarantine()
