"""`firewall calibrate`: guard a served classifier, or recalibrate a guard on its own traffic."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firewall.cli.shared import Json, Trust
from firewall.cli.upstream import UpstreamCa, UpstreamTokenFile, upstream_settings
from firewall.errors import ConfigError

if TYPE_CHECKING:
    from firewall.bundle.spec import GuardSpec, InputSpec
    from firewall.protocol.tensors import TensorInfo


def calibrate(
    out: Annotated[Path, typer.Option(help="New folder for the bundle.")],
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Clean images as clients send them: files, folders, or .npz files with an array x."
        ),
    ] = None,
    upstream: Annotated[
        str | None,
        typer.Option(
            help="The classifier: grpc://host:port/model, or http://host:port/v2/models/NAME; "
            "grpcs:// and https:// use TLS."
        ),
    ] = None,
    upstream_ca: UpstreamCa = None,
    upstream_token_file: UpstreamTokenFile = None,
    from_quarantine: Annotated[
        str | None,
        typer.Option(
            help="Recalibrate --bundle on the quarantine at this URL: accepted rows that serve "
            "--quarantine-sample kept, and refused rows that were labelled clean."
        ),
    ] = None,
    quarantine_images: Annotated[
        str | None,
        typer.Option(
            help="Folder of quarantined images, as given to serve (default: beside the database)."
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="With --from-quarantine: the bundle to recalibrate. It is not changed."),
    ] = None,
    trust: Trust = None,
    stages: Annotated[
        Path | None,
        typer.Option(help="TOML file with the stages of a recipe (default: a built-in guard)."),
    ] = None,
    false_positive_rate: Annotated[
        float,
        typer.Option(
            min=1e-6, max=0.5, help="False-positive rate that the guard must be able to promise."
        ),
    ] = 0.01,
    value_range: Annotated[
        str, typer.Option("--range", help="Range of the pixel values that clients send: low,high.")
    ] = "0,1",
    mean: Annotated[
        str | None, typer.Option(help="Mean of each channel, if inputs are normalised.")
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(help="Standard deviation of each channel, if inputs are normalised."),
    ] = None,
    probabilities: Annotated[
        bool,
        typer.Option("--probabilities", help="The classifier answers probabilities, not logits."),
    ] = False,
    labels: Annotated[
        Path | None, typer.Option(help="Class names, one per line (default: numbers).")
    ] = None,
    resize: Annotated[
        int | None,
        typer.Option(min=4, help="Shorter side of encoded images in pixels, before the crop."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the bundle (default: that of the classifier).")
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="Version of the bundle (default: 1, or the next number).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of the random draws.")] = 0,
    as_json: Json = False,
) -> None:
    """Calibrate a guard for a served classifier, whose weights are not needed.

    With --from-quarantine, recalibrate an existing guard on the traffic that it has screened.
    """
    if from_quarantine is not None:
        if images or bundle is None:
            raise ConfigError("--from-quarantine: goes with --bundle, and without images")
        from firewall.cli.recalibrate import recalibrate_bundle

        found = recalibrate_bundle(
            bundle, from_quarantine, quarantine_images, out,
            trust=trust, version=version, rate=false_positive_rate, seed=seed,
            upstream=None
            if upstream is None
            else upstream_settings(upstream, upstream_ca, upstream_token_file),
        )  # fmt: skip
        if as_json:
            print(json.dumps(found, allow_nan=False))
        else:
            print(f"{out}: version {found['version']}, calibrated on {found['images']} rows")
        return
    if upstream is None or not images:
        raise ConfigError("calibrate: expected images and --upstream, or --from-quarantine")
    if bundle is not None:
        raise ConfigError("--bundle: is for --from-quarantine")
    try:
        from firewall.stages.registry import Registry
        from firewall.train.calibrate_remote import DEFAULT, RemoteIdentity, calibrate_remote
    except ImportError as error:
        raise ConfigError(
            "calibrate: needs more packages; pip install 'robustness-firewall[train]'"
        ) from error
    import numpy as np

    from firewall.bundle.signing import user_signer
    from firewall.bundle.spec import Preprocessing
    from firewall.screening.offline import rows
    from firewall.upstream.client import Upstream, describe

    if out.exists():
        raise ConfigError(f"--out: {out} exists; name a new folder")
    settings = upstream_settings(upstream, upstream_ca, upstream_token_file)
    source, given, platform = describe(settings)
    spec = _input_spec(source, value_range, mean, std)
    classes = given.shape[-1]
    if len(given.shape) != 2 or classes < 2:
        raise ConfigError(
            f"upstream: output {given.name!r} is {list(given.shape)}; expected [rows, classes]"
        )
    side = min(spec.height, spec.width)
    preprocessing = Preprocessing(resize=resize or side)
    wire: list[Any] = []
    problems: list[str] = []
    for row in rows(images, spec, preprocessing):
        if row.wire is None:
            problems.append(f"{row.path}: {row.error}")
        else:
            wire.append(row.wire)
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ConfigError(f"images: {'; '.join(problems[:5])}{more}")
    classifier = Upstream(settings, input_name=source.name, output=given.name)
    try:
        digest = calibrate_remote(
            out,
            classifier,
            np.stack(wire) if wire else np.empty((0, *spec.shape)),
            RemoteIdentity(
                name=name or settings.model,
                version=version or "1",
                architecture=f"served elsewhere{f', {platform}' if platform else ''}",
                labels=_labels(labels, classes),
                output=given.name,
                probabilities=probabilities,
                seed=seed,
            ),
            spec,
            preprocessing,
            user_signer(),
            Registry.discover(),
            guard_spec=DEFAULT if stages is None else _stages(stages),
            rate=false_positive_rate,
            progress=lambda line: print(line, file=sys.stderr, flush=True),
        )
    finally:
        classifier.close()
    if as_json:
        print(
            json.dumps({"bundle": str(out), "digest": digest, "images": len(wire)}, allow_nan=False)
        )
    else:
        print(f"{out}: firewall serve {out} --upstream {upstream}")


def _input_spec(
    source: TensorInfo, value_range: str, mean: str | None, std: str | None
) -> InputSpec:
    """Combine the server's description of its input with the options that complete it."""
    from pydantic import ValidationError

    from firewall.bundle.spec import InputSpec
    from firewall.validation import describe

    shape = source.shape[1:]
    if len(source.shape) != 4 or min(shape) < 1:
        raise ConfigError(
            f"upstream: input {source.name!r} is {list(source.shape)}; expected [rows, channels, "
            "height, width] or [rows, height, width, channels] with fixed sizes"
        )
    first = shape[0] in (1, 3, 4)
    if not first and shape[2] not in (1, 3, 4):
        raise ConfigError(
            f"upstream: input {source.name!r} is {list(source.shape)}; where are its channels?"
        )
    low, high = _numbers(value_range, "--range", 2)
    body: dict[str, Any] = {
        "name": source.name,
        "layout": "NCHW" if first else "NHWC",
        "datatype": source.datatype,
        "channels": shape[0] if first else shape[2],
        "height": shape[1] if first else shape[0],
        "width": shape[2] if first else shape[1],
    }
    if source.datatype == "UINT8":
        low, high = 0.0, 255.0
    if mean is not None or std is not None:
        body |= {
            "mean": None if mean is None else _numbers(mean, "--mean", body["channels"]),
            "std": None if std is None else _numbers(std, "--std", body["channels"]),
        }
    else:
        body |= {"low": low, "high": high}
    try:
        return InputSpec.model_validate(body)
    except ValidationError as error:
        raise ConfigError(f"upstream: {describe(error)}") from error


def _numbers(text: str, flag: str, count: int) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) != count:
        raise ConfigError(f"{flag}: {text!r}; expected {count} numbers with commas between")
    return found


def _labels(path: Path | None, classes: int) -> tuple[str, ...]:
    if path is None:
        return tuple(str(number) for number in range(classes))
    from firewall.documents import read_text

    found = tuple(read_text(path, "--labels").splitlines())
    if len(found) != classes:
        raise ConfigError(f"--labels: {path} has {len(found)} lines; the classifier {classes}")
    return found


def _stages(path: Path) -> GuardSpec:
    from pydantic import ValidationError

    from firewall.bundle.spec import GuardSpec
    from firewall.documents import parse_toml
    from firewall.validation import describe

    try:
        return GuardSpec.model_validate(parse_toml(path.read_bytes(), f"--stages: {path}"))
    except OSError as error:
        raise ConfigError(f"--stages: {path} cannot be read") from error
    except ValidationError as error:
        raise ConfigError(f"--stages: {path}: {describe(error)}") from error
