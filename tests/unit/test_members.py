"""A recipe with members, stages that learn, and reviewed traffic."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from firewall.bundle.signing import Signer
from firewall.bundle.spec import GuardSpec, StageSpec
from firewall.bundle.store import open_bundle
from firewall.errors import ConfigError, EvidenceMissing
from firewall.guard.assemble import assemble
from firewall.screening.compiled import CompiledGuard
from firewall.screening.load import load_guard
from firewall.screening.policy import Policy
from firewall.screening.scores import log_softmax
from firewall.stages.registry import Registry
from firewall.train.pipeline import run
from firewall.train.recipe import load
from firewall.train.sources import SourceSpec, read, read_reviewed, split, with_reviewed
from tests.support.tiny import TinyClassifier

RECIPE = """
name = "members"
[data]
source = "digits"
channels = 1
height = 8
width = 8
calibration = 0.2
{more}
[network]
width = 4
hidden = 16
[train]
radius = 0.1
rate = 5e-3
[[train.phases]]
objective = "standard"
epochs = 4
[[members]]
name = "robust"
network = {{ width = 4, hidden = 16 }}
apart = 0.1
train = {{ radius = 0.1, rate = 5e-3, phases = [{{ objective = "pgd", epochs = 4, steps = 2 }}] }}
[[stages]]
kind = "denoiser"
name = "cleaner"
plugin = "learned"
config = {{ epochs = 1, width = 4 }}
[[stages]]
kind = "detector"
name = "residual"
plugin = "residual-cnn"
config = {{ epochs = 1, width = 4 }}
[[stages]]
kind = "detector"
name = "safety-net"
plugin = "safety-net"
config = {{ rows = 100, features = 16 }}
[[stages]]
kind = "detector"
name = "disagreement"
plugin = "disagreement"
[[stages]]
kind = "ensemble"
name = "mixture"
plugin = "mixture"
config = {{ members = ["robust"], weights = [3.0] }}
[guard]
false_positive_rate = 0.05
[evaluate]
suite = "static"
rows = 8
steps = 3
"""


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover()


@pytest.mark.slow
def test_a_recipe_with_members_and_learners(
    tmp_path: Path, signer: Signer, registry: Registry
) -> None:
    recipe = tmp_path / "members.toml"
    recipe.write_text(RECIPE.format(more=""))
    done = run(load(recipe, registry), tmp_path, tmp_path / "run", signer, registry)
    assert done is not None
    manifest = json.loads((done.bundle / "manifest.json").read_text())
    fitted = manifest["provenance"]["fitted"]
    assert fitted["cleaner"]["loss"] > 0
    assert fitted["safety-net"]["support_vectors"] > 1
    assert fitted["residual"]["training_accuracy"] > 0.4
    names = {path.name.rpartition("-")[0] for path in (tmp_path / "run" / "steps").iterdir()}
    assert {"train", "train-robust"} <= names
    [state] = (tmp_path / "run" / "steps").glob("train-robust-*/state")
    assert list((state / "tensorboard").glob("events.out.tfevents.*"))
    # What is served is the classifier's and the member's, one to three.
    compiled = CompiledGuard({path.name: path.read_bytes() for path in done.bundle.iterdir()})
    x, _ = read(SourceSpec(source="digits", channels=1, height=8, width=8), Path())
    wire = x.x[:16].astype(np.float32) / 255
    mixed, statistics = compiled.both(wire)
    own = log_softmax(compiled.cheap(wire).logits)
    assert np.abs(mixed - own).max() > 0.01
    assert np.isfinite(statistics).all()
    assert statistics.shape == (16, 3)
    # Disagreement counts from paranoia 3 on.
    bundle = open_bundle(done.bundle, {signer.public})
    for level, expected in ((2, False), (3, True)):
        live = load_guard(bundle, Policy(false_positive_rate=0.05, paranoia=level))
        seen = live.screen(wire, [live.plan("")] * 16).decisions
        assert all(("disagreement" in one.statistics) is expected for one in seen)


def test_a_stage_without_its_member_is_refused(tmp_path: Path, registry: Registry) -> None:
    recipe = tmp_path / "members.toml"
    text = RECIPE.format(more="").replace('name = "robust"', 'name = "other"')
    recipe.write_text(text)
    with pytest.raises(ConfigError, match=r"2 mistakes: stages\[3\]: needs the member 'robust'"):
        load(recipe, registry)
    spec = GuardSpec(stages=(StageSpec(kind="detector", name="d", plugin="disagreement"),))
    with pytest.raises(EvidenceMissing, match=r"'d' needs the member 'robust'; members .* none"):
        assemble(spec, registry, TinyClassifier())
    empty = '[[members]]\nname = "other"\ntrain = { radius = 0.1, phases = [] }\n[[stages]]'
    recipe.write_text(text.replace("[[stages]]", empty, 1))
    with pytest.raises(ConfigError, match=r"phases"):
        load(recipe, registry)


def reviewed(folder: Path, lines: list[object]) -> SourceSpec:
    folder.mkdir()
    for number in range(3):
        pixels = np.full((8, 8), 40 * number + 7, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "index.jsonl").write_text("\n".join(text))
    return SourceSpec(
        source="digits", channels=1, height=8, width=8, reviewed=str(folder), repeat=2
    )


def test_reviewed_traffic_joins_the_training_part(tmp_path: Path) -> None:
    spec = reviewed(
        tmp_path / "q",
        [
            {"image": "0.png", "verdict": "reject", "label": "3"},
            {"image": "1.png", "verdict": "flag", "label": None},
            {"image": "2.png", "verdict": "reject", "label": 7},
        ],
    )
    found, test = read(spec, tmp_path)
    extra = read_reviewed(spec, tmp_path, found.labels)
    assert extra is not None
    assert extra.y.tolist() == [3, 7]
    before = split(spec, found, test)
    parts = with_reviewed(before, extra, spec.repeat)
    assert len(parts["train"]) == len(before["train"]) + 4
    assert parts["train"].y[-4:].tolist() == [3, 7, 3, 7]
    assert (parts["train"].x[-1] == 87).all()
    assert all(parts[part] is before[part] for part in ("selection", "calibration", "test"))


def test_what_is_sealed_is_not_learnt_from_review(tmp_path: Path) -> None:
    spec = SourceSpec(source="digits", channels=1, height=8, width=8)
    found, test = read(spec, tmp_path)
    parts = split(spec, found, test)
    joined = with_reviewed(parts, parts["test"], 1)
    assert len(joined["train"]) == len(parts["train"])


def test_a_wrong_review_folder_is_one_error(tmp_path: Path) -> None:
    lines: list[object] = [
        {"image": "0.png", "label": "elephant"},
        "no json",
        {"image": "../0.png", "label": "3"},
        {"image": "9.png", "label": "3"},
    ]
    spec = reviewed(tmp_path / "q", lines)
    labels = tuple("0123456789")
    with pytest.raises(ConfigError) as caught:
        read_reviewed(spec, tmp_path, labels)
    for words in (
        "line 1: label 'elephant' is none", "line 2: expected an object",
        "../0.png is not a file", "9.png is not a file",
    ):  # fmt: skip
        assert words in str(caught.value)
    spec = reviewed(tmp_path / "r", [{"image": "0.png", "label": None}])
    with pytest.raises(ConfigError, match="has no line with a label"):
        read_reviewed(spec, tmp_path, labels)
    with pytest.raises(ConfigError, match=r"index\.jsonl cannot be read"):
        read_reviewed(spec.model_copy(update={"reviewed": "nowhere"}), tmp_path, labels)
