from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from firewall.cli.app import app
from firewall.errors import ConfigError
from firewall.screening.calibration import Calibration
from firewall.screening.policy import Policy
from firewall.serve import application
from firewall.serve.settings import Settings

NAMES = ("cheap", "dear")


def test_defaults_refuse_one_in_a_hundred_and_disclose_nothing() -> None:
    policy = Policy()
    assert (policy.mode, policy.sample, policy.false_positive_rate) == ("enforce", 100, 0.01)
    assert (policy.on_fault, policy.disclose, policy.outputs) == ("reject", "verdict", "full")


@pytest.mark.parametrize(
    ("text", "answers"),
    [("", True), ('outputs = "label"', False), ('outputs = "rounded"', False),
     ('outputs = "label"\ncertify = true', True), ("certify = false", False)],
)  # fmt: skip
def test_certificates_are_as_loud_as_the_outputs(text: str, answers: bool) -> None:
    assert Policy.parse(text).certificates is answers


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('mode = "block"', ["mode", "block"]),
        ("false_positive_rate = 0", ["false_positive_rate", "0"]),
        ("sample = 101", ["sample", "101"]),
        ("paranoia = 5", ["paranoia", "5"]),
        ('surprise = "x"', ["surprise"]),
        ('[[exclusions]]\nid = "x"', ["exclusions[0]", "names no model, client or detector"]),
        ("mode = ", ["not TOML"]),
    ],
)
def test_a_wrong_policy_is_named(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Policy.parse(text)
    for word in words:
        assert word in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.toml cannot be read"):
        Policy.load(tmp_path / "nothing.toml")


def test_what_counts_at_each_level_of_paranoia() -> None:
    rows = np.zeros((3, 3))
    one = Calibration(("cheap", "member", "dear"), 2, rows, rows, 0.5, guard_model=("member",))
    assert [one.up_to(level) for level in (1, 2, 3, 4)] == [
        ("cheap",),
        ("cheap", "dear"),
        ("cheap", "member", "dear"),
        ("cheap", "member", "dear"),
    ]
    assert Calibration.from_json(one.to_json()).guard_model == ("member",)


@pytest.mark.parametrize(
    ("exclusion", "expected"),
    [
        ('detector = "dear"', {"cheap"}),
        ('detector = "dear"\nmodel = "m"', {"cheap"}),
        ('detector = "dear"\nmodel = "other"', {"cheap", "dear"}),
        ('client = "10.0.0.1"', None),
        ('client = "10.0.0.2"', {"cheap", "dear"}),
        ('model = "m"', None),
    ],
)
def test_exclusions(exclusion: str, expected: set[str] | None) -> None:
    policy = Policy.parse(f'[[exclusions]]\nid = "e1"\n{exclusion}')
    assert policy.active(NAMES, "m", "10.0.0.1") == expected


def test_the_digest_names_the_policy() -> None:
    assert Policy().digest == Policy().digest
    assert Policy().digest != Policy(mode="monitor").digest


@pytest.mark.parametrize(("flags", "ours"), [([], True), (["--policy", "own.toml"], False)])
def test_the_default_bundle_comes_with_a_monitor_that_watches(
    flags: list[str], ours: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where neither a bundle nor a policy is given."""
    served: list[Settings] = []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.toml").write_text("paranoia = 1\n")
    monkeypatch.setattr("firewall.cli.serve.default_bundle_in_a_process", lambda: tmp_path)
    monkeypatch.setattr(application, "run", lambda settings, bundles: served.append(settings))
    done = CliRunner().invoke(app, ["serve", *flags])
    assert done.exit_code == 0, done.output
    found = Policy.of(served[0].policy, None, None)
    assert [one.mode for one in found.monitors] == ["monitor"] * ours
    # Otherwise it is the default policy.
    assert found.model_copy(update={"monitors": ()}) == (Policy() if ours else Policy(paranoia=1))
