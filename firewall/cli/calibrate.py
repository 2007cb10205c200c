"""`firewall calibrate`: another calibration of an existing bundle."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firewall.cli.shared import Json, Trust, open_checked
from firewall.cli.upstream import (
    UpstreamCa,
    UpstreamTokenFile,
    UpstreamUrl,
    opened_upstream,
)
from firewall.errors import ConfigError, SampleTooSmall

if TYPE_CHECKING:
    from firewall.bundle.store import Bundle

#: Rates that are tried after the bundle's own, where none was asked for.
_RATES = (0.01, 0.02, 0.05, 0.1)


def calibrate(
    bundle: Annotated[Path, typer.Argument(help="Bundle to calibrate anew; it is not changed.")],
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Clean images as clients send them: files, folders, or .npz files with an array x."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="New folder for the bundle.")] = Path("calibrated"),
    from_quarantine: Annotated[
        str | None,
        typer.Option(
            help="In place of images: the quarantine at this URL. Accepted rows that serve "
            "--quarantine-sample kept count, and refused rows that were labelled clean."
        ),
    ] = None,
    quarantine_images: Annotated[
        str | None,
        typer.Option(
            help="Folder of quarantined images, as given to serve (default: beside the database)."
        ),
    ] = None,
    upstream: UpstreamUrl = None,
    upstream_ca: UpstreamCa = None,
    upstream_token_file: UpstreamTokenFile = None,
    trust: Trust = None,
    false_positive_rate: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            max=0.4,
            help="False-positive rate that the guard must be able to promise (default: the "
            "bundle's own, or the next higher one that the images allow).",
        ),
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="Version of the bundle (default: the next number).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of the random draws.")] = 0,
    as_json: Json = False,
) -> None:
    """Calibrate a bundle anew, on images of your own or on the traffic that it has screened.

    Graphs and figures stay; only the reference distributions change. `firewall guard` makes a
    bundle.
    """
    if bool(images) is (from_quarantine is not None):
        raise ConfigError("calibrate: expected images, or --from-quarantine, and not both")
    import numpy as np

    from firewall.bundle.signing import user_signer
    from firewall.bundle.store import write_bundle
    from firewall.screening.calibration import Calibration
    from firewall.screening.load import open_graphs
    from firewall.screening.recalibrate import recalibrate

    if out.exists():
        raise ConfigError(f"--out: {out} exists; name a new folder")
    opened = open_checked(bundle, trust)
    manifest = opened.manifest
    rows = (
        _of_images(opened, images or [])
        if from_quarantine is None
        else _of_quarantine(opened, from_quarantine, quarantine_images)
    )
    wire = np.stack(rows) if rows else np.empty((0, *manifest.input.shape))
    with opened_upstream(manifest, upstream, upstream_ca, upstream_token_file) as classifier:
        graphs = open_graphs(opened, classifier=classifier)
        rate = _rate(false_positive_rate, manifest.promised_rate, len(wire))
        calibration = recalibrate(
            Calibration.from_json(opened.files["calibration.json"]), graphs, wire,
            rate=rate, rng=np.random.default_rng(seed),
        )  # fmt: skip
    now = datetime.now(UTC).isoformat(timespec="seconds")
    what = "images" if from_quarantine is None else "rows of traffic"
    note = (
        f"\n## Calibrated anew\n\nOn {now} by {len(wire)} {what}, from version "
        f"{manifest.version} (bundle {opened.digest[:12]}), for a false-positive rate of "
        f"{rate:g}. The graphs are the same; figures above are from before.\n"
    )
    data = {**manifest.provenance.data, "recalibrated-from": (opened.digest,)}
    changed = manifest.model_copy(
        update={
            "version": version or _next(manifest.version),
            "promised_rate": rate,
            "provenance": manifest.provenance.model_copy(update={"created": now, "data": data}),
        }
    )
    files = {
        **opened.files,
        "calibration.json": calibration.to_json(),
        "MODEL_CARD.md": opened.files["MODEL_CARD.md"] + note.encode(),
    }
    digest = write_bundle(out, changed, files, user_signer())
    if as_json:
        body = {
            "bundle": str(out), "digest": digest, "version": changed.version, "images": len(wire),
            "false_positive_rate": rate,
        }  # fmt: skip
        print(json.dumps(body, allow_nan=False))
    else:
        print(
            f"{out}: version {changed.version}, calibrated on {len(wire)} {what} for a "
            f"false-positive rate of {rate:g}"
        )


def _rate(asked: float | None, promised: float | None, rows: int) -> float:
    """The rate to calibrate for: that which was asked for, or the best that can be promised.

    Raises:
        SampleTooSmall: none can be.

    """
    from firewall.screening.calibration import least_sample

    if asked is not None:
        return asked
    own = promised or _RATES[0]
    for rate in (own, *(one for one in _RATES if one > own)):
        if rows // 2 >= least_sample(rate):
            return rate
    raise SampleTooSmall(
        f"images: {rows} cannot promise a false-positive rate of {_RATES[-1]:g}; expected at "
        f"least {2 * least_sample(_RATES[-1])}"
    )


def _of_images(opened: Bundle, images: list[Path]) -> list[Any]:
    """Rows of image files.

    Raises:
        ConfigError: a file cannot be read; the first five are named.

    """
    from firewall.screening.offline import rows

    wire: list[Any] = []
    problems: list[str] = []
    for row in rows(images, opened.manifest.input, opened.manifest.preprocessing):
        if row.wire is None:
            problems.append(f"{row.path}: {row.error}")
        else:
            wire.append(row.wire)
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ConfigError(f"images: {'; '.join(problems[:5])}{more}")
    return wire


def _of_quarantine(opened: Bundle, database: str, images: str | None) -> list[Any]:
    """Rows that were kept of the traffic, in so far as they are known to be clean.

    Refused rows count where a person has named their class: to leave them all out would make the
    guard stricter each time. Refused rows that nobody has reviewed are therefore an error.

    Raises:
        ConfigError: sampled rows wait for review, or are of another shape.

    """
    from firewall.quarantine.opening import open_resolved
    from firewall.screening.verdict import Verdict

    manifest = opened.manifest
    store = open_resolved(
        database, images, flags=("--from-quarantine", "--quarantine-images"), access="read"
    )
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
    finally:
        store.close()
    if waiting:
        raise ConfigError(
            f"--from-quarantine: {waiting} sampled rows were refused and nobody has looked at "
            "them; firewall quarantine label says which are clean"
        )
    return rows


def _next(version: str) -> str:
    """The last number one higher; where there is none, a `.1` behind it."""
    found = re.search(r"(\d+)(\D*)$", version)
    if found is None:
        return f"{version}.1"
    return f"{version[: found.start()]}{int(found[1]) + 1}{found[2]}"
