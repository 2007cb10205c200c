"""The main job on real input: the real ImageNet classifier, a real photograph, a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from firewall.bundle.signing import trusted_keys
from firewall.bundle.store import open_bundle
from firewall.train import default_recipe


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, object], Path]:
    picture = tmp_path_factory.mktemp("demo") / "story.png"
    done = subprocess.run(
        [sys.executable, "-m", "firewall", "demo", "--json", "--picture", str(picture)],
        capture_output=True,
        text=True,
        timeout=280,
        # Building the bundle is the longest test there is: it may have every core.
        env={key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    return json.loads(line), picture


@pytest.mark.slow
def test_the_demo_tells_its_story(told: tuple[dict[str, object], Path]) -> None:
    story, picture = told
    assert set(story) == {"clean", "forged", "forged_jpeg", "monitor", "picture", "seconds"}
    clean, forged = story["clean"], story["forged"]
    assert isinstance(clean, dict)
    assert isinstance(forged, dict)
    assert set(clean) == {"label", "probability", "verdict"}
    assert set(forged) == {"bare_label", "bare_probability", "verdict", "reasons"}
    assert clean["verdict"] == "accept"
    assert clean["label"] in ("tabby", "tiger cat", "Egyptian cat")
    assert forged["bare_label"] == "common iguana"
    assert forged["bare_probability"] > 0.95
    assert forged["verdict"] == "reject"
    assert forged["reasons"]
    saved = story["forged_jpeg"]
    assert isinstance(saved, dict)
    # Refused, or no iguana any more.
    assert saved["verdict"] == "reject" or saved["label"] not in (None, "common iguana")
    assert story["monitor"] == {"verdict": "flag"}
    assert story["picture"] == str(picture)
    with Image.open(picture) as image:
        assert image.size[0] > 1000
        assert len(np.unique(np.asarray(image.convert("L")))) > 100


@pytest.mark.slow
@pytest.mark.usefixtures("told")
def test_the_default_bundle_is_cached_signed_and_says_what_was_measured() -> None:
    bundle = open_bundle(default_recipe.cached_path(), trusted_keys())
    assert bundle.manifest.provenance.recipe == default_recipe.digest()
    assert len(bundle.labels) == 1000
    evaluation = json.loads(bundle.files["evaluation.json"])
    card = bundle.files["MODEL_CARD.md"].decode()
    measured = evaluation["held_out"]["0.05"]
    assert f"| 5.0 % | {100 * measured['rate']:.1f} % |" in card
    # No photograph is in two parts.
    data = dict(bundle.manifest.provenance.data)
    assert all(package in card for package in data.pop("packages"))
    parts = [set(lines) for lines in data.values()]
    assert len(parts) == 3
    assert sum(len(part) for part in parts) == len(set.union(*parts))


@pytest.mark.slow
@pytest.mark.usefixtures("told")
def test_the_published_figures_are_those_of_this_recipe() -> None:
    root = Path(__file__).parents[2]
    result = json.loads((root / "benchmarks/results/core-guards/result.json").read_text())
    assert result["recipe"] == default_recipe.digest()
    card = open_bundle(default_recipe.cached_path(), trusted_keys()).files["MODEL_CARD.md"].decode()
    for attack in result["attacks"]:
        assert f"| {attack['attack']} |" in card
        assert f"{100 * attack['refused']['share']:.1f} % (" in card
    for name, figures in result["benign"].items():
        assert f"| {name} | {100 * figures['refused']['share']:.1f} % |" in card
