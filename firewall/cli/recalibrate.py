"""`firewall calibrate --from-quarantine`: a guard calibrated anew by its own traffic."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firewall.cli.shared import open_checked
from firewall.errors import ConfigError
from firewall.quarantine.opening import open_resolved

if TYPE_CHECKING:
    from firewall.upstream.settings import UpstreamSettings


def recalibrate_bundle(
    path: Path,
    database: str,
    images: str | None,
    out: Path,
    *,
    trust: list[str] | None,
    upstream: UpstreamSettings | None,
    version: str | None,
    rate: float,
    seed: int,
) -> dict[str, Any]:
    """Write and sign the recalibrated bundle; returns its place, digest, version and row count.

    Refused rows count where a person has named their class: to leave them all out would make the
    guard stricter each time. Refused rows that nobody has reviewed are therefore an error.

    Raises:
        ConfigError: a setting is wrong, or sampled rows wait for review.
        SampleTooSmall: the rows cannot promise the rate.

    """
    import numpy as np

    from firewall.bundle.signing import user_signer
    from firewall.bundle.store import write_bundle
    from firewall.screening.calibration import Calibration
    from firewall.screening.load import load_guard
    from firewall.screening.policy import Policy
    from firewall.screening.recalibrate import recalibrate
    from firewall.screening.verdict import Verdict
    from firewall.upstream.client import Upstream

    if out.exists():
        raise ConfigError(f"--out: {out} exists; name a new folder")
    opened = open_checked(path, trust)
    manifest = opened.manifest
    classifier = None
    if upstream is not None:
        classifier = Upstream(upstream, input_name=manifest.input.name, output=manifest.output)
    guard = load_guard(opened, Policy(mode="off"), classifier=classifier)
    flags = ("--from-quarantine", "--quarantine-images")
    store = open_resolved(database, images, flags=flags, access="read")
    rows: list[Any] = []
    waiting = 0
    try:
        for record in store.traffic(manifest.name):
            if record.label is None and record.verdict != Verdict.ACCEPT.value:
                waiting += 1
            elif record.label != "":
                wire = store.image(record)
                if wire.shape != manifest.input.shape:
                    raise ConfigError(
                        f"--from-quarantine: row {record.id} is {list(wire.shape)}; the bundle "
                        f"takes {list(manifest.input.shape)}"
                    )
                rows.append(wire)
        if waiting:
            raise ConfigError(
                f"--from-quarantine: {waiting} sampled rows were refused and nobody has looked at "
                "them; firewall quarantine label says which are clean"
            )
        batch = np.stack(rows) if rows else np.empty((0, *manifest.input.shape))
        calibration = recalibrate(
            Calibration.from_json(opened.files["calibration.json"]), guard.compiled, batch,
            rate=rate, rng=np.random.default_rng(seed),
        )  # fmt: skip
    finally:
        store.close()
        if classifier is not None:
            classifier.close()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    note = (
        f"\n## Calibrated anew\n\nOn {now} by {len(rows)} rows of traffic, from version "
        f"{manifest.version} (bundle {opened.digest[:12]}). The graphs are the same; figures above "
        "are from before.\n"
    )
    changed = manifest.model_copy(
        update={
            "version": version or _next(manifest.version),
            "provenance": manifest.provenance.model_copy(
                update={
                    "created": now,
                    "data": {**manifest.provenance.data, "recalibrated-from": (opened.digest,)},
                }
            ),
        }
    )
    files = {
        **opened.files,
        "calibration.json": calibration.to_json(),
        "MODEL_CARD.md": opened.files["MODEL_CARD.md"] + note.encode(),
    }
    digest = write_bundle(out, changed, files, user_signer())
    return {
        "bundle": str(out), "digest": digest, "version": changed.version, "images": len(rows),
    }  # fmt: skip


def _next(version: str) -> str:
    """The last number one higher; where there is none, a `.1` behind it."""
    found = re.search(r"(\d+)(\D*)$", version)
    if found is None:
        return f"{version}.1"
    return f"{version[: found.start()]}{int(found[1]) + 1}{found[2]}"
