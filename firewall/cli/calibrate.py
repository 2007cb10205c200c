"""`firewall calibrate`: a bundle for a classifier elsewhere, or a guard for other traffic."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firewall.cli.shared import Json, Trust
from firewall.errors import ConfigError

if TYPE_CHECKING:
    from firewall.bundle.spec import GuardSpec, InputSpec
    from firewall.protocol.tensors import TensorInfo


def calibrate(
    out: Annotated[Path, typer.Option(help="Folder of the bundle; a new one.")],
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Clean images: files, folders, or .npz files with x, as clients send."),
    ] = None,
    upstream: Annotated[
        str | None,
        typer.Option(help="The classifier: grpc://host:port/model[/version], grpcs:// with TLS."),
    ] = None,
    from_quarantine: Annotated[
        str | None,
        typer.Option(
            help="Calibrate --bundle anew by what serve --quarantine-sample kept here: accepted "
            "rows, and refused ones that people called clean."
        ),
    ] = None,
    quarantine_images: Annotated[
        str | None, typer.Option(help="As serve has it; beside the file without.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="With --from-quarantine: the guard; a new one is written.")
    ] = None,
    trust: Trust = None,
    stages: Annotated[
        Path | None, typer.Option(help="TOML with [[stages]], as in a recipe; good ones without.")
    ] = None,
    false_positive_rate: Annotated[
        float, typer.Option(min=1e-6, max=0.5, help="That it must be able to promise.")
    ] = 0.01,
    value_range: Annotated[
        str, typer.Option("--range", help="Of pixels as clients send them: low,high.")
    ] = "0,1",
    mean: Annotated[str | None, typer.Option(help="By channel, of normalised inputs.")] = None,
    std: Annotated[str | None, typer.Option(help="By channel, of normalised inputs.")] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="The output holds these, and not logits.")
    ] = False,
    labels: Annotated[
        Path | None, typer.Option(help="Names of the classes, one a line; numbers without.")
    ] = None,
    resize: Annotated[
        int | None, typer.Option(min=4, help="Shorter side of encoded images before the crop.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the bundle; the classifier's own.")] = None,
    version: Annotated[
        str | None, typer.Option(help="Of the bundle; 1 without, or the next number.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of every draw.")] = 0,
    as_json: Json = False,
) -> None:
    """Calibrate a guard for a served classifier that nobody here sees the weights of.

    With --from-quarantine: calibrate a guard anew, by the traffic that it has seen.
    """
    if from_quarantine is not None:
        if images or bundle is None:
            raise ConfigError("--from-quarantine: goes with --bundle, and without images")
        from firewall.cli.recalibrate import recalibrate_bundle

        found = recalibrate_bundle(
            bundle, from_quarantine, quarantine_images, out,
            trust=trust, upstream=upstream, version=version, rate=false_positive_rate, seed=seed,
        )  # fmt: skip
        if as_json:
            print(json.dumps(found))
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
    from firewall.serve.upstream import Upstream, UpstreamSettings, describe

    if out.exists():
        raise ConfigError(f"--out: {out} exists; name a new folder")
    settings = UpstreamSettings.parse(upstream)
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
        print(json.dumps({"bundle": str(out), "digest": digest, "images": len(wire)}))
    else:
        print(f"{out}: firewall serve {out} --upstream {upstream}")


def _input_spec(
    source: TensorInfo, value_range: str, mean: str | None, std: str | None
) -> InputSpec:
    """From what the server says of its input, and from what it cannot say."""
    from pydantic import ValidationError

    from firewall.bundle.spec import InputSpec

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
        first_error = error.errors()[0]
        where = ".".join(str(part) for part in first_error["loc"]) or "input"
        text = str(first_error["msg"]).removeprefix("Value error, ")
        raise ConfigError(f"upstream, {where}: {text}") from error


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
    try:
        found = tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--labels: {path} cannot be read") from error
    if len(found) != classes:
        raise ConfigError(f"--labels: {path} has {len(found)} lines; the classifier {classes}")
    return found


def _stages(path: Path) -> GuardSpec:
    from pydantic import ValidationError

    from firewall.bundle.spec import GuardSpec

    try:
        return GuardSpec.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--stages: {path} cannot be read") from error
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in error.errors()
        ]
        raise ConfigError(f"--stages: {path}: {'; '.join(problems)}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"--stages: {path} is not TOML: {error}") from error
