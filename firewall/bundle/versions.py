"""Order the versions of bundles, so that an old bundle cannot quietly replace a newer one.

A signature does not expire: a bundle that was signed once stays valid, also after its weaknesses
are known. So the operator sets a floor (`min_version` of the policy), and replacing a live bundle
by an older one has to be asked for.

Versions that can be compared are numbers separated by dots. They compare number by number, and
missing numbers count as zero: 1.9 < 1.10, and 1.2 is as old as 1.2.0. Other versions (`1.2-rc1`,
`2026-11-23`) are allowed in manifests, but have no order.
"""

from __future__ import annotations

import re
from itertools import zip_longest

from firewall.errors import BundleVersionTooOld, ConfigError

_COMPARABLE = re.compile(r"[0-9]{1,18}(\.[0-9]{1,18})*")


def is_comparable(version: str) -> bool:
    """Whether a version consists of numbers separated by dots."""
    return _COMPARABLE.fullmatch(version) is not None


def is_older(version: str, other: str) -> bool:
    """Whether `version` comes before `other`.

    Raises:
        ConfigError: the versions differ, and at least one of them has no order.

    """
    if version == other:
        return False
    for text in (version, other):
        if not is_comparable(text):
            raise ConfigError(
                f"bundle version: {version!r} and {other!r} cannot be compared, because {text!r} "
                "is not numbers separated by dots"
            )
    pairs = zip_longest(_numbers(version), _numbers(other), fillvalue=0)
    return next((left < right for left, right in pairs if left != right), False)


def check_version(live: str | None, new: str, floor: str | None, allow_downgrade: bool) -> None:
    """Refuse a bundle that is too old to be served.

    Args:
        live: version that is served now under the same name; None when there is none.
        new: version of the bundle that is to be served.
        floor: `min_version` of the policy. `allow_downgrade` does not lift it.
        allow_downgrade: whether the operator asked for a version older than the live one.

    Raises:
        BundleVersionTooOld: `new` is older than `floor`, or than `live` without permission.
        ConfigError: two versions have to be compared that have no order.

    """
    if floor is not None and is_older(new, floor):
        raise BundleVersionTooOld(
            f"manifest.json: version {new!r} is older than min_version {floor!r} of the policy"
        )
    if live is not None and not allow_downgrade and is_older(new, live):
        raise BundleVersionTooOld(
            f"manifest.json: version {new!r} is older than {live!r}, which is being served; allow "
            "the downgrade explicitly if you want it"
        )


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]
