"""An old bundle, however well signed, does not replace a newer one unless it is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from firewall.bundle.signing import Signer
from firewall.bundle.store import Bundle, open_bundle
from firewall.bundle.versions import check_version, is_comparable, is_older
from firewall.errors import BundleVersionTooOld, ConfigError
from firewall.screening.load import load_guard
from firewall.screening.policy import Policy
from tests.support.tiny import another


@pytest.mark.parametrize(
    ("version", "other", "older"),
    [
        ("1", "2", True),
        ("2", "1", False),
        ("1.9", "1.10", True),
        ("1.10", "1.9", False),
        ("1.2", "1.2.0", False),
        ("1.2.0", "1.2", False),
        ("1.2", "1.2.0.1", True),
        ("01", "1", False),
        ("release-a", "release-a", False),
    ],
)
def test_versions_are_ordered_number_by_number(version: str, other: str, older: bool) -> None:
    assert is_older(version, other) is older


@pytest.mark.parametrize("text", ["1.2-rc1", "v1", "2026-11-23", "1.", "1..2", "9" * 19, "\u0661"])
def test_other_versions_have_no_order(text: str) -> None:
    assert not is_comparable(text)
    with pytest.raises(ConfigError, match="cannot be compared, because"):
        is_older(text, "1.2")


def test_a_bundle_older_than_the_floor_is_refused_even_when_downgrades_are_allowed() -> None:
    for allowed in (False, True):
        with pytest.raises(BundleVersionTooOld, match=r"'1\.9' is older than min_version '1\.10'"):
            check_version(None, "1.9", "1.10", allowed)


def test_a_bundle_older_than_the_live_one_is_refused_unless_allowed() -> None:
    with pytest.raises(BundleVersionTooOld, match=r"'1' is older than '2', which is being served"):
        check_version("2", "1", None, False)
    check_version("2", "1", None, True)
    check_version("2", "1", "1", True)


def test_bundles_of_any_version_are_served_where_nothing_is_compared() -> None:
    check_version(None, "rc1", None, False)
    check_version("rc1", "rc1", None, False)
    check_version("rc1", "rc2", None, True)


def test_versions_without_an_order_are_refused_where_they_have_to_be_compared() -> None:
    with pytest.raises(ConfigError, match="because 'rc2' is not numbers"):
        check_version("1", "rc2", None, False)


def test_load_guard_refuses_a_bundle_below_the_floor_of_the_policy(
    tiny: Bundle, tmp_path: Path, signer: Signer
) -> None:
    with pytest.raises(BundleVersionTooOld, match="older than min_version '2'"):
        load_guard(tiny, Policy.parse('min_version = "2"'))
    newer = open_bundle(another(tiny, tmp_path / "new", signer, version="2.0"), {signer.public})
    assert load_guard(newer, Policy.parse('min_version = "2"')).model == "tiny"


def test_a_floor_without_an_order_is_a_mistake_of_the_policy() -> None:
    with pytest.raises(ConfigError, match=r"min_version.*numbers separated by dots"):
        Policy.parse('min_version = "1-rc1"')
