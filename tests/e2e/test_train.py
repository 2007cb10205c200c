"""`firewall train`: from a recipe to a signed bundle, killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import command as quick

ROOT = Path(__file__).parents[2]
SMOKE = (ROOT / "recipes" / "digits-smoke.toml").read_text()
#: The recipe that ships, with less of everything.
SMALL = (
    SMOKE.replace("epochs = 10", "epochs = 3")
    .replace("epochs = 20", "epochs = 4")
    .replace('suite = "full"', 'suite = "adaptive"')
    .replace("rows = 100", "rows = 16")
    .replace("steps = 20\nqueries = 100", "steps = 3\nqueries = 20")
    .replace("clean_accuracy = 0.9", "clean_accuracy = 0.5")
)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "firewall", *arguments]


def firewall(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=250, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.slow
def test_a_recipe_becomes_a_bundle_and_a_killed_run_the_same_one(tmp_path: Path) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text(SMALL)
    out = tmp_path / "run"
    # Killed while it trains, without a word of warning.
    with subprocess.Popen(
        command("train", str(recipe), "--out", str(out)),
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch 4 of 7"):
                os.kill(process.pid, signal.SIGKILL)
                break
    assert not (out / "bundle").exists()
    done = firewall("train", str(recipe), "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    assert "going on after epoch 4 of 7" in done.stderr
    summary = json.loads(done.stdout)
    assert summary["guard_model"]["clean_accuracy"]["value"] > 0.5
    assert summary["firewall"]["robust_accuracy"] <= summary["guard_model"]["robust_accuracy"] + 0.1
    assert [entry["epoch"] for entry in summary["training"]] == [1, 2, 3, 4, 5, 6, 7]
    assert (out / "report.html").exists()
    assert (out / "log.jsonl").read_text().count("\n") == 7

    verified = quick("bundle", "verify", str(out / "bundle"), "--json")
    assert verified.returncode == 0, verified.stderr
    digest = json.loads(verified.stdout)["digest"]
    card = (out / "bundle" / "MODEL_CARD.md").read_text()
    assert "adaptive, weighted, past the cheap tier" in card

    # The same recipe, started at the same moment, not killed: the same bits.
    other = tmp_path / "other"
    other.mkdir()
    (other / "started.txt").write_text((out / "started.txt").read_text())
    whole = firewall("train", str(recipe), "--out", str(other))
    assert whole.returncode == 0, whole.stderr
    again = quick("bundle", "verify", str(other / "bundle"), "--json")
    assert json.loads(again.stdout)["digest"] == digest

    # What is done is not done again; a gate that it does not reach signs nothing.
    recipe.write_text(SMALL.replace("clean_accuracy = 0.5", "clean_accuracy = 1.0\n"
                                    "false_positive_rate = 0.0"))  # fmt: skip
    refused = firewall("train", str(recipe), "--out", str(other))
    assert refused.returncode == 1
    assert "train: done before" in refused.stderr
    assert "gate: clean_accuracy" in refused.stderr.splitlines()[-1]
    assert "nothing was signed" in refused.stderr.splitlines()[-1]
    assert "signing the bundle" not in refused.stderr
    # The bundle of the run before is not there as if it were this one's.
    assert not (other / "bundle").exists()
    assert (other / "bundle-of-an-earlier-run" / "manifest.json").exists()

    # What the recipe promises is what the server keeps, without being told.
    with Path(out / "bundle" / "manifest.json").open(encoding="utf-8") as file:
        assert json.load(file)["promised_rate"] == 0.02


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"false_positive_rate = 0.02": "false_positive_rate = 0.0001"},
         "guard.false_positive_rate: 0.0001 needs 19998 calibration images"),
        ({'source = "digits"': 'source = "idx"\npath = "nowhere"'}, "nowhere does not exist"),
        ({"height = 8": "height = 9"}, "[data] says [1, 9, 8]"),
        ({'plugin = "log-average"': 'plugin = "nothing"', "width = 16": "width = 1"},
         "2 mistakes"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_one_line_before_any_compute(
    changes: dict[str, str], words: str, tmp_path: Path
) -> None:
    text = SMALL
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    recipe = tmp_path / "wrong.toml"
    recipe.write_text(text)
    done = quick("train", str(recipe), "--out", str(tmp_path / "run"))
    assert done.returncode == 2
    assert words in done.stderr.splitlines()[-1]
    # It claims no folder, and the check alone says the same.
    assert not (tmp_path / "run").exists()
    checked = quick("train", str(recipe), "--check")
    assert checked.returncode == 2
    assert words in checked.stderr.splitlines()[-1]


def test_a_recipe_can_be_checked_alone(tmp_path: Path) -> None:
    recipe = str(ROOT / "recipes" / "digits-smoke.toml")
    done = quick("train", recipe, "--check")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split() == [
        "class", "train", "selection", "calibration", "test",
    ]  # fmt: skip
    assert done.stdout.rstrip().endswith(": good")
    counted = json.loads(quick("train", recipe, "--check", "--json").stdout)
    assert sum(map(sum, counted["counts"].values())) == 1797
    missing = quick("train", recipe)
    assert missing.returncode == 2
    assert "--out: missing" in missing.stderr
