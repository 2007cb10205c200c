"""A server that keeps what it refuses."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from firewall.bundle.signing import Signer, user_signer
from firewall.bundle.store import open_bundle
from firewall.cli.app import app
from firewall.client import Client
from firewall.client.open_inference import OpenInferenceClient
from firewall.errors import Refused
from firewall.quarantine.opening import open_store
from firewall.screening.load import load_guard
from firewall.screening.policy import Policy
from firewall.screening.verdict import Verdict
from tests.support.served import served
from tests.support.tiny import forged, wire


def test_what_is_refused_is_kept_and_what_is_accepted_is_not(
    tiny_path: Path, signer: Signer, tmp_path: Path
) -> None:
    database, key = tmp_path / "q.db", tmp_path / "pseudonym.key"
    with (
        served(
            tiny_path, signer, tmp_path, "--false-positive-rate", "0.05",
            "--quarantine", str(database), "--quarantine-key", str(key),
        ) as server,
        OpenInferenceClient(server.address, model="tiny") as client,
    ):  # fmt: skip
        for row in range(3):
            x = forged(1) * np.float32(1 - 0.05 * row)
            with pytest.raises(Refused) as refused:
                client.infer({"image": x})
        for seed in range(5):
            try:
                client.infer({"image": wire(1, 200 + seed)})
            except Refused:
                continue
        with urllib.request.urlopen(
            f"http://127.0.0.1:{server.operations_port}/metrics", timeout=5
        ) as page:
            assert "firewall_quarantine_rows_total" in page.read().decode()
        assert server.terminate() == 0
        audited = [event for event in server.events() if event["event"] == "verdict"]
    # Stopped means written.
    store = open_store(str(database), None)
    kept = store.find()
    assert {one.request_id for one in kept} == {event["request_id"] for event in audited}
    assert refused.value.request_id in {one.request_id for one in kept}
    last = next(one for one in kept if one.request_id == refused.value.request_id)
    assert np.array_equal(store.image(last), x[0])
    assert last.verdict == "reject"
    assert last.reasons
    # Nobody's address lies in it.
    text = b"".join(path.read_bytes() for path in tmp_path.glob("q.db*") if path.is_file())
    assert b"127.0.0.1" not in text
    assert last.statistics


def test_a_quarantine_that_cannot_be_opened_is_said_at_the_start(
    tiny_path: Path, signer: Signer, tmp_path: Path
) -> None:
    with (
        pytest.raises(AssertionError, match=r"--quarantine: .* cannot be opened"),
        served(tiny_path, signer, tmp_path, "--quarantine", str(tmp_path / "no" / "q.db")),
    ):
        pass


def test_many_refusals_are_told_as_a_broken_calibration(
    tiny_path: Path, signer: Signer, tmp_path: Path
) -> None:
    """In monitor mode, so that every row is answered: more small p-values than were promised."""
    with (
        served(
            tiny_path, signer, tmp_path, "--false-positive-rate", "0.05", "--mode", "monitor"
        ) as server,
        OpenInferenceClient(server.address, model="tiny") as client,
    ):  # fmt: skip

        def evidence() -> float:
            url = f"http://127.0.0.1:{server.operations_port}/metrics"
            with urllib.request.urlopen(url, timeout=5) as page:
                text = page.read().decode()
            name = 'firewall_calibration_evidence{model="tiny"} '
            [line] = [one for one in text.splitlines() if one.startswith(name)]
            return float(line.removeprefix(name))

        assert evidence() == 0
        client.infer({"image": wire(16, 300)})
        assert evidence() < 0.5
        for _ in range(8):
            client.infer({"image": forged(8)})
        assert evidence() >= 1
        assert server.terminate() == 0
        [event] = [one for one in server.events() if one["event"] == "calibration"]
    assert event["model"] == "tiny"
    assert "p-values below" in event["alarm"]


def test_a_guard_is_calibrated_anew_by_the_traffic_that_it_has_seen(
    tiny_path: Path, signer: Signer, tmp_path: Path
) -> None:
    database = tmp_path / "q.db"
    with (
        served(
            tiny_path, signer, tmp_path, "--false-positive-rate", "0.05",
            "--quarantine", str(database), "--quarantine-sample", "100",
            "--quarantine-key", str(tmp_path / "pseudonym.key"),
        ) as server,
        Client(server.address) as client,
    ):  # fmt: skip
        # Another camera: all of it a little darker.
        clean = [client.predict(wire(8, 300 + n) * np.float32(0.9)) for n in range(10)]
        client.predict(forged(3))
        server.terminate()
    store = open_store(str(database), None)
    kept = list(store.traffic("tiny"))
    assert len(kept) == 83
    accepted = sum(one.verdict.value == "accept" for row in clean for one in row)
    assert sum(one.verdict == "accept" for one in kept) == accepted
    (tmp_path / "signer.pub").write_text(signer.public)
    command = [
        "calibrate", str(tiny_path), "--from-quarantine", str(database), "--trust",
        str(tmp_path / "signer.pub"), "--out", str(tmp_path / "new"), "--false-positive-rate",
    ]  # fmt: skip
    early = CliRunner().invoke(app, [*command, "0.05"])
    assert "sampled rows were refused and nobody has looked at them" in str(early.exception)
    for one in kept:
        if one.verdict != "accept":
            # Of the last three, a person says that they are none of the classes.
            store.label(one.id, "" if one.id > kept[-4].id else "class 1", "alice")
    few = CliRunner().invoke(app, [*command, "0.001"])
    assert "80 cannot promise a false-positive rate of 0.001" in str(few.exception)
    done = CliRunner().invoke(app, [*command, "0.05"])
    assert done.exit_code == 0, done.exception
    assert "version 2, calibrated on 80 rows" in done.stdout
    new = open_bundle(tmp_path / "new", {user_signer().public})
    old = open_bundle(tiny_path, {signer.public})
    assert new.files["cheap.onnx"] == old.files["cheap.onnx"]
    assert b"Calibrated anew" in new.files["MODEL_CARD.md"]
    guard = load_guard(new, Policy(false_positive_rate=0.05))
    assert len(guard.calibration.part_a) == len(guard.calibration.part_b) == 40
    # What it was calibrated on is as common to it as the rate says, whatever it was before.
    again = guard.screen(wire(40, 400) * np.float32(0.9), [guard.plan("")] * 40)
    refused = sum(one.verdict is Verdict.REJECT for one in again.decisions)
    assert refused <= 8


def test_rows_are_sampled_only_where_they_can_be_kept(
    tiny_path: Path, signer: Signer, tmp_path: Path
) -> None:
    with (
        pytest.raises(AssertionError, match="--quarantine-sample: keeps rows in --quarantine"),
        served(tiny_path, signer, tmp_path, "--quarantine-sample", "10"),
    ):
        pass
