"""`firewall evaluate` on a bundle, from the command line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from firewall.bundle.signing import Signer
from firewall.testing import images
from tests.support.command import command
from tests.support.tiny import TinyClassifier, write_tiny_onnx


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with the labels that the bare classifier gives them: all right when clean."""
    x = images(20, seed=80)
    with torch.no_grad():
        y = TinyClassifier()(x).logits.argmax(1)
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(path, x=x.numpy(), y=y.numpy())
    return path


@pytest.fixture
def run(tiny_path: Path, signer: Signer, tmp_path: Path) -> object:
    key = tmp_path / "signer.pub"
    key.write_text(signer.public)

    def evaluate(*arguments: str) -> subprocess.CompletedProcess[str]:
        return evaluate_target(
            tiny_path, "--trust", str(key), "--steps", "10", "--queries", "60",
            "--false-positive-rate", "0.05", *arguments,
        )  # fmt: skip

    return evaluate


def evaluate_target(target: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return command("evaluate", str(target), *arguments)


@pytest.mark.slow
def test_the_full_suite_and_its_resumption(run, data: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "out"
    arguments = ("--data", str(data), "--eps", "0.2", "--out", str(out), "--json")
    first = run(*arguments)
    assert first.returncode == 0, first.stderr
    result = json.loads(first.stdout)
    assert result == json.loads((out / "evaluation.json").read_text())
    assert result["n"] == 20
    knowledge = {one["knowledge"] for one in result["attacks"]}
    assert knowledge == {"oblivious", "black-box", "adaptive"}
    assert {one["name"] for one in result["attacks"] if not one["bounded"]} == {"DeepFool", "CW-L2"}
    by_name = {one["name"]: one for one in result["attacks"]}
    # At this radius an undefended network falls to every gradient.
    assert by_name["APGD-CE"]["fooled_bare_rate"] == 1.0
    assert 0 < by_name["Square"]["queries"] <= 60
    adaptive = max(one["success_rate"] for one in result["attacks"] if "adaptive" in one["name"])
    oblivious = max(
        one["success_rate"] for one in result["attacks"] if one["knowledge"] == "oblivious"
    )
    assert adaptive >= oblivious
    # The worst case is over all attacks together, row by row.
    worst = result["worst_case"]
    assert worst["robust_accuracy"] == pytest.approx(np.mean(worst["per_example"]))
    assert worst["robust_accuracy"] <= min(
        one["robust_accuracy"] for one in result["attacks"] if one["bounded"]
    )
    assert worst["robust_accuracy"] <= result["clean"]["accepted_and_correct"]["value"]

    # A guard that lacks a stage lets at least as much through as the one attack that knew it all.
    lines = {line["guard"]: line for line in result["ablation"]}
    assert lines["the whole guard"]["through"]["APGD-CE"] <= lines["no guard"]["through"]["APGD-CE"]
    assert result["curve"]["points"][0]["robust_accuracy"] >= worst["robust_accuracy"]
    assert result["curve"]["points"][-1]["bare_robust_accuracy"] == 0.0
    assert result["checks"]["large_radius_fools"] == 1.0
    assert sum(pair["count"] for pair in result["confusion"]) > 0

    page = (out / "report.html").read_text()
    assert len(page) < 1_000_000
    assert "http" not in page.replace("http-equiv", "")
    assert f"{100 * worst['robust_accuracy']:.1f} %" in page
    for one in result["attacks"]:
        assert one["name"] in page
    for warning in result["warnings"]:
        # On top, before any figure.
        assert page.index(warning[:20]) < page.index("Robust accuracy, worst case")

    # Killed in the middle: some shards and the result are gone. The same command, the same numbers.
    (out / "evaluation.json").unlink()
    for path in sorted((out / "shards").glob("*.json"))[3::2]:
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in (out / "shards").glob("*.json")}
    # In two processes this time; what is there is not done again.
    again = json.loads(run(*arguments, "--jobs", "2").stdout)
    for one in (*result["attacks"], *again["attacks"]):
        del one["seconds"]
    for whole in (result, again):
        del whole["environment"]
    assert again == result
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_another_evaluation_in_the_folder_is_left_alone(run, data: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = str(tmp_path / "out")
    common = ("--data", str(data), "--out", out, "--suite", "static", "--n", "4")
    assert run(*common, "--eps", "0.1").returncode == 0
    refused = run(*common, "--eps", "0.2")
    assert refused.returncode == 2
    assert "holds another evaluation" in refused.stderr


@pytest.mark.slow
def test_a_surrogate_forges_and_is_sent_once(run, data: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    x = images(200, seed=90)
    with torch.no_grad():
        y = TinyClassifier()(x).logits.argmax(1)
    own = tmp_path / "own.npz"
    np.savez(own, x=x.numpy(), y=y.numpy())
    done = run(
        "--data", str(data), "--suite", "static", "--eps", "0.1", "--out", str(tmp_path / "o"),
        "--surrogate-data", str(own), "--json",
    )  # fmt: skip
    attacks = {one["name"]: one for one in json.loads(done.stdout)["attacks"]}
    for name in ("transfer, no query", "transfer, 200 queries"):
        assert attacks[name]["knowledge"] == "transfer"
        assert attacks[name]["fooled_bare_rate"] <= attacks["APGD-T"]["fooled_bare_rate"]


def test_a_bare_onnx_file(data: Path, tmp_path: Path) -> None:
    path = write_tiny_onnx(tmp_path / "net.onnx")
    done = evaluate_target(path, "--data", str(data), "--suite", "static", "--eps", "0.2",
                           "--steps", "10", "--out", str(tmp_path / "o"), "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert not result["target"]["guarded"]
    assert result["clean"]["accepted_and_correct"]["value"] == 1.0
    assert {one["knowledge"] for one in result["attacks"]} == {"white-box"}
    assert result["worst_case"]["robust_accuracy"] == 0.0
    refused = evaluate_target(path, "--data", str(data), "--suite", "adaptive")
    assert refused.returncode == 2
    assert "'adaptive' is for a guard" in refused.stderr
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    junk = evaluate_target(tmp_path / "junk.onnx", "--data", str(data))
    assert junk.returncode == 2
    assert "junk.onnx is not an ONNX model" in junk.stderr


def test_without_an_adaptive_attack_it_says_so(run, data: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = run("--data", str(data), "--suite", "static", "--n", "4", "--out", str(tmp_path / "o"))
    assert done.stdout.startswith("WARNING: no adaptive attack")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--suite", "everything"), "--suite: 'everything'; expected one of quick, static"),
        (("--eps", "-0.1"), "--eps: -0.1; expected a positive, finite radius"),
        (("--eps", "inf"), "--eps: inf; expected a positive, finite radius"),
        (("--eps", "nan"), "--eps: nan; expected a positive, finite radius"),
        (("--eps", "8"), "expected at most 1, since images have values in [0, 1] (8/255 is 0.0314"),
        (("--norm", "l7"), "--norm: 'l7'; expected linf or l2"),
        (("--surrogate", "nothing.onnx"), "nothing.onnx cannot be read"),
        (("--surrogate-data", "SHORT"), "--surrogate-data, y: shape [2]; expected one label"),
        (("--data", "nothing.npz"), "nothing.npz cannot be read"),
        (("--data", "BAD"), "labels 0 to 10; expected 0 to 9"),
        (("--data", "SHORT"), "expected one label for 3 rows"),
    ],
)
def test_a_wrong_request_is_one_line_and_leaves_nothing(  # type: ignore[no-untyped-def]
    arguments: tuple[str, str], words: str, run, data: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "bad.npz", x=images(3).numpy(), y=np.array([0, 10, 2]))
    np.savez(tmp_path / "short.npz", x=images(3).numpy(), y=np.array([0, 1]))
    named = {"BAD": str(tmp_path / "bad.npz"), "SHORT": str(tmp_path / "short.npz")}
    out = tmp_path / "out"
    chosen = {"--data": str(data)} | {arguments[0]: named.get(arguments[1], arguments[1])}
    flat = [word for pair in chosen.items() for word in pair]
    done = run(*flat, "--out", str(out))
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (out / "evaluation.json").exists()
    assert not (out / "request.json").exists()
