"""`firewall calibrate-monitor`: a [[monitors]] section for a policy, from clean images."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from firewall.cli.shared import Json, Trust, open_checked
from firewall.cli.upstream import (
    UpstreamCa,
    UpstreamTokenFile,
    UpstreamUrl,
    opened_upstream,
)
from firewall.errors import ConfigError


def calibrate_monitor(
    images: Annotated[
        list[Path],
        typer.Argument(
            help="Clean images, no two of them nearly the same: files, folders, or .npz files."
        ),
    ],
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="Bundle whose requests the monitor will see (default: the default bundle)."
        ),
    ] = None,
    plugin: Annotated[
        str, typer.Option(help="Name of the monitor plugin, as `firewall plugins` lists it.")
    ] = "query-similarity",
    name: Annotated[str, typer.Option(help="Name of the section.")] = "queries",
    config: Annotated[
        str, typer.Option(help="Settings of the plugin as a JSON object; the others are learned.")
    ] = "{}",
    false_alarms: Annotated[
        float,
        typer.Option(
            min=1e-6, max=0.5, help="Largest share of clean requests that the monitor may refuse."
        ),
    ] = 0.001,
    requests: Annotated[
        int, typer.Option(min=10, help="Number of requests in the calibration stream.")
    ] = 20_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random draws.")] = 0,
    upstream: UpstreamUrl = None,
    upstream_ca: UpstreamCa = None,
    upstream_token_file: UpstreamTokenFile = None,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Print a [[monitors]] section for the policy, calibrated on a stream of clean requests.

    Most requests of the stream are new images; others repeat an earlier image bit for bit, resave
    it as JPEG, or are frames of a short clip.
    """
    import numpy as np

    from firewall.documents import parse_json
    from firewall.monitors.calibrate import calibrate
    from firewall.monitors.registry import MonitorRegistry
    from firewall.screening.load import load_guard
    from firewall.screening.offline import rows
    from firewall.screening.policy import Policy
    from firewall.screening.preprocess import to_wire
    from firewall.screening.wire_pixels import pixels

    given = parse_json(config, "--config", error=ConfigError)
    if not isinstance(given, dict):
        raise ConfigError(f"--config: {config!r}; expected an object")
    opened = open_checked(bundle, trust)
    spec = opened.manifest.input
    wire: list[Any] = []
    for row in rows(images, spec, opened.manifest.preprocessing):
        if row.wire is None:
            raise ConfigError(f"images: {row.path}: {row.error}")
        wire.append(row.wire)
    if len(wire) < 2:
        raise ConfigError(f"images: {len(wire)}; expected at least 2, and better thousands")
    clean = np.rint(pixels(np.stack(wire), spec) * 255).astype(np.uint8).transpose(0, 2, 3, 1)

    with opened_upstream(opened.manifest, upstream, upstream_ca, upstream_token_file) as classifier:
        guard = load_guard(opened, Policy(mode="off"), classifier=classifier)

        def look(some: Any) -> Any:
            sent = to_wire(some, spec)
            answer = guard.screen(sent, [guard.plan("")] * len(sent))
            return pixels(sent, spec), answer.log_probabilities

        found = calibrate(
            MonitorRegistry.discover(), plugin, given, clean, look,
            rate=false_alarms, count=requests, seed=seed,
        )  # fmt: skip
    if as_json:
        print(json.dumps({
            "name": name, "plugin": plugin, "threshold": found.threshold, "config": found.config,
            "requests": dict(found.requests), "alarms": dict(found.alarms),
            "largest": found.largest,
        }, allow_nan=False))  # fmt: skip
        return
    print("[[monitors]]")
    print(f"name = {json.dumps(name, allow_nan=False)}")
    print(f"plugin = {json.dumps(plugin, allow_nan=False)}")
    print(f"threshold = {found.threshold:g}")
    print(
        "config = { "
        + ", ".join(f"{k} = {json.dumps(v, allow_nan=False)}" for k, v in found.config.items())
        + " }"
    )
    said = ", ".join(
        f"{found.alarms.get(kind, 0)} of {count} {kind}" for kind, count in found.requests.items()
    )
    print(f"firewall: false alarms: {said}; largest score {found.largest:g}", file=sys.stderr)
