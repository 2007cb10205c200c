"""A guard of few calibration rows: it can be built, and says what it can promise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from firewall.bundle.signing import Signer, TrustedKeys
from firewall.bundle.store import Bundle, open_bundle
from firewall.errors import CalibrationError
from firewall.screening.load import load_guard
from firewall.screening.policy import Policy
from tests.support.tiny import another, build_tiny


def test_fourteen_rows_promise_a_fifteenth(signer: Signer, tmp_path: Path) -> None:
    """It failed after all training: 0.05, which nobody had asked for, cannot be promised."""
    path = build_tiny(tmp_path / "few", signer, rows=14)
    bundle = open_bundle(path, TrustedKeys.of(signer.public))
    held_out = json.loads(bundle.files["evaluation.json"])["held_out"]
    assert [key for key in held_out if key not in ("rows", "photographs")] == ["0.0666667"]
    with pytest.raises(CalibrationError, match=r"0\.05 cannot be promised from 14"):
        load_guard(bundle, Policy(false_positive_rate=0.05))
    assert load_guard(bundle, Policy(false_positive_rate=0.1)).policy.false_positive_rate == 0.1
    assert b"6.7 %" in bundle.files["MODEL_CARD.md"]


def test_the_rate_that_a_bundle_was_made_for_holds_unless_a_policy_names_another(
    tiny: Bundle, signer: Signer, tmp_path: Path
) -> None:
    path = another(tiny, tmp_path / "five", signer, promised_rate=0.05)
    bundle = open_bundle(path, TrustedKeys.of(signer.public))
    guard = load_guard(bundle, Policy())
    assert guard.policy.false_positive_rate == 0.05
    assert load_guard(bundle, Policy(false_positive_rate=0.1)).policy.false_positive_rate == 0.1
    # A mode that is changed says nothing about the rate.
    assert guard.with_policy(Policy(mode="monitor")).policy.false_positive_rate == 0.05
    assert Policy.of(None, "monitor", None).for_bundle(0.05).false_positive_rate == 0.05
    assert Policy.of(None, None, 0.02).for_bundle(0.05).false_positive_rate == 0.02
