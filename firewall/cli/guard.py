"""`firewall guard`: a guard for the classifier that you have."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firewall.cli.describing import (
    Activation,
    ChannelOrder,
    Labels,
    Layout,
    Mean,
    Output,
    Preset,
    Range,
    Shape,
    Std,
    source_options,
)
from firewall.cli.shared import Json
from firewall.cli.upstream import UpstreamCa, UpstreamTokenFile, upstream_settings
from firewall.errors import ConfigError

if TYPE_CHECKING:
    from firewall.bundle.spec import GuardSpec
    from firewall.sources.options import SourceOptions
    from firewall.sources.plan import Plan

#: Images of the table that shows how the classifier is fed.
_SHOWN = 8


def guard(
    source: Annotated[
        str,
        typer.Argument(
            help="The classifier: an .onnx file; timm:NAME; hf:FOLDER with config.json, "
            "preprocessor_config.json and weights; package.module:function that returns a "
            "torch.nn.Module (its code is run); or a served model, grpc://host:port/model or "
            "http://host:port/v2/models/NAME (grpcs:// and https:// use TLS)."
        ),
    ],
    images: Annotated[
        list[Path],
        typer.Argument(
            help="Clean images as the classifier will see them: files and folders; folders named "
            "after the classes give its accuracy."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="New folder for the bundle; the report lies beside it."),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Only look at the classifier and at what it says of images."),
    ] = False,
    preset: Preset = None,
    mean: Mean = None,
    std: Std = None,
    value_range: Range = None,
    channel_order: ChannelOrder = None,
    layout: Layout = None,
    shape: Shape = None,
    input_name: Annotated[
        str | None,
        typer.Option("--input", help="Name of the input, where a served model does not say it."),
    ] = None,
    output: Output = None,
    activation: Activation = None,
    labels: Labels = None,
    resize: Annotated[
        int | None,
        typer.Option(
            min=4,
            help="Pixels of an encoded image's shorter side before the centre is cropped "
            "(default: the source's own, else the input's).",
        ),
    ] = None,
    squash: Annotated[
        bool,
        typer.Option(
            "--squash", help="Resize encoded images to the input at once, whatever their shape."
        ),
    ] = False,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="For timm:NAME: weights, .safetensors or .pth (default: timm's own)."),
    ] = None,
    surrogate: Annotated[
        Path | None,
        typer.Option(
            help=".onnx file of a stand-in with the same classes and input, on which attackers "
            "forge; by that of a served model, stages learn too (default: attackers train one)."
        ),
    ] = None,
    upstream_ca: UpstreamCa = None,
    upstream_token_file: UpstreamTokenFile = None,
    false_positive_rate: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            max=0.4,
            help="False-positive rate that the guard must be able to promise (default: the lowest "
            "of 0.01, 0.02, 0.05 and 0.1 that the images allow).",
        ),
    ] = None,
    eps: Annotated[
        float,
        typer.Option(
            min=1e-4,
            max=0.5,
            help="L-infinity radius of the attackers that the guard is made for and attacked by, "
            "for values in [0, 1].",
            show_default="4/255",
        ),
    ] = 4 / 255,
    minutes: Annotated[
        float,
        typer.Option(
            min=0.01, max=10_000, help="Minutes that teaching and attacking the guard may take."
        ),
    ] = 6.0,
    images_limit: Annotated[
        int, typer.Option(min=20, help="Images that are used, at most.")
    ] = 2000,
    stages: Annotated[
        Path | None,
        typer.Option(help="TOML file with the stages of a recipe (default: a built-in guard)."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name under which the model is served (default: the source's)."),
    ] = None,
    version: Annotated[str, typer.Option(help="Version of the bundle.")] = "1",
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of the random draws.")] = 0,
    as_json: Json = False,
) -> None:
    """Make a guard for the classifier that you have: inspect, check, fit, attack, sign.

    An interrupted run goes on where it stopped when the same command is given again.
    """
    if out is None and not check:
        raise ConfigError("--out: missing; name a new folder for the bundle, or add --check")
    if out is not None and out.exists() and not check:
        raise ConfigError(f"--out: {out} exists; name a new folder")
    options = source_options(
        preset=preset, mean=mean, std=std, value_range=value_range, channel_order=channel_order,
        layout=layout, shape=shape, output=output, activation=activation, labels=labels,
        input=input_name, resize=resize, fit="squash" if squash else None, checkpoint=checkpoint,
        surrogate=surrogate, name=name,
    )  # fmt: skip
    begun = time.monotonic()

    def progress(line: str) -> None:
        print(f"[{time.monotonic() - begun:5.0f} s] {line}", file=sys.stderr, flush=True)

    chosen = None if stages is None else read_stages(stages)
    if out is not None and not os.access(_existing(out), os.W_OK):
        raise ConfigError(f"--out: {out} cannot be written")
    progress(f"opening {source}")
    try:
        from firewall.sources.plan import inspect
        from firewall.sources.source import SCHEMES, open_source
        from firewall.train.guard_source import Settings, make_guard, split
    except ImportError as error:
        raise ConfigError(
            "guard: needs more packages; pip install 'robustness-firewall[train,attack]'"
        ) from error
    settings = None
    if source.startswith(SCHEMES):
        settings = upstream_settings(source, upstream_ca, upstream_token_file)
    opened = open_source(source, options, settings)
    plan = inspect(opened, options, images, images_limit, progress)
    making = Settings(
        rate=false_positive_rate, minutes=minutes, radius=eps, stages=chosen, version=version,
        seed=seed,
    )  # fmt: skip
    # Too few images are said before anything takes time.
    split(len(plan.images.pixels), making)
    if as_json and check:
        print(json.dumps(_described(plan), allow_nan=False))
        return
    described = options.normalisation is not None
    _show(plan, described, sys.stderr if as_json else sys.stdout)
    if check:
        return
    from firewall.bundle.signing import user_signer
    from firewall.stages.registry import Registry

    assert out is not None
    try:
        made = make_guard(out, plan, options, making, user_signer(), Registry.discover(), progress)
    except KeyboardInterrupt:
        progress("interrupted; the same command goes on where it stopped")
        raise
    if as_json:
        print(json.dumps({**_described(plan), **made}, allow_nan=False))
        return
    _summary(made, source, plan, options)


def read_stages(path: Path) -> GuardSpec:
    """Read the stages of a guard from a TOML file.

    Raises:
        ConfigError: it cannot be read, or holds something else.

    """
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


def _described(plan: Plan) -> dict[str, Any]:
    from firewall.sources.check import top_classes

    tops = top_classes(plan.checked.logits, plan.labels)
    return {
        "source": plan.source.text,
        "architecture": plan.source.architecture,
        "input": plan.spec.model_dump(mode="json"),
        "output": plan.source.output.name,
        "scores": plan.checked.scores.spec.model_dump(mode="json"),
        "classes": plan.checked.scores.classes,
        "other_outputs": [one.name for one in plan.others],
        "preprocessing": plan.preprocessing.model_dump(mode="json"),
        "accuracy": plan.accuracy,
        "confidence": dict(plan.checked.confidence),
        "warnings": list(plan.warnings),
        "sample": [
            {"image": plan.images.names[row], "classes": [list(one) for one in top]}
            for row, top in zip(plan.sample.tolist(), tops, strict=True)
        ],
    }


def _show(plan: Plan, described: bool, stream: Any) -> None:
    """Print what was found, with a few images and what the classifier says of them."""
    from firewall.sources.check import top_classes

    spec, scores = plan.spec, plan.checked.scores

    def line(name: str, text: str) -> None:
        print(f"{name:14} {_plain(text)}", file=stream)

    line("classifier", plan.source.architecture)
    origin = "" if described else plan.source.hints.source
    how = (
        f"mean {_listed(spec.mean)}, std {_listed(spec.std)} of values in [0, 1]"
        if spec.mean is not None and spec.std is not None
        else f"{spec.low:g} to {spec.high:g}"
    )
    line(
        "input",
        f"{spec.name!r}, {spec.datatype} {spec.layout} {list(spec.shape)}, "
        f"{ {1: 'grey', 4: 'RGBA'}.get(spec.channels, spec.channel_order) }, {how}"
        + (f" (from {origin})" if origin else ""),
    )
    one = " of one value" if scores.classes == 2 and math.prod(scores.shape) == 1 else ""
    line(
        "output",
        f"{plan.source.output.name!r}, {scores.classes} classes{one}, {scores.spec.activation}"
        + (f"; passed through: {', '.join(one.name for one in plan.others)}"
           if plan.others else ""),
    )  # fmt: skip
    fit = "resized to it" if plan.preprocessing.fit == "squash" else (
        f"shorter side {plan.preprocessing.resize}, centre cropped"
    )  # fmt: skip
    line("images", f"{len(plan.images.pixels)}, {fit}")
    if plan.accuracy is not None:
        line("accuracy", f"{plan.accuracy:.1%} of {len(plan.sample)} images, {plan.truth_note}")
    print(file=stream)
    every = max(1, len(plan.sample) // _SHOWN)
    tops = top_classes(plan.checked.logits, plan.labels)
    for place in range(0, min(len(plan.sample), every * _SHOWN), every):
        said = ", ".join(f"{label} {share:.0%}" for label, share in tops[place])
        print(f"{_plain(plan.images.names[plan.sample[place]])[:40]:40} {_plain(said)}",
              file=stream)  # fmt: skip
    print(file=stream)
    for warning in plan.warnings:
        print(f"WARNING: {_plain(warning)}", file=stream)


def _summary(made: dict[str, Any], source: str, plan: Plan, options: SourceOptions) -> None:
    result = made["evaluation"]
    clean = result["clean"]
    print()
    print(f"false positives {made['false_positive_rate']:.0%} promised, "
          f"{clean['false_positive_rate']['value']:.1%} of {result['n']} attacked images "
          "refused when clean")  # fmt: skip
    for one in result["attacks"]:
        fooled = one["fooled_bare_rate"]
        print(
            f"{one['name']:42} {one['knowledge']:10} "
            f"fools the classifier {'n/a' if fooled is None else f'{fooled:.0%}':>4}, "
            f"gets past the guard {one['success_rate']:.0%}"
        )
    low, high = result["worst_case"]["interval"]
    print(
        f"{'worst case':42} {'':10} {result['worst_case']['robust_accuracy']:.0%} of images stand "
        f"({low:.0%} to {high:.0%})"
    )
    for warning in result["warnings"]:
        print(f"WARNING: {warning}")
    upstream = f" --upstream {source}" if plan.kind == "remote" else ""
    print(f"report  {made['report']}")
    print(f"serve   firewall serve {made['bundle']}{upstream}")


def _listed(values: tuple[float, ...] | None) -> str:
    return ",".join(f"{value:.4g}" for value in values or ())


def _plain(text: str) -> str:
    """Text without control characters, which a terminal would obey."""
    return "".join(one if one.isprintable() else " " for one in text)


def _existing(path: Path) -> Path:
    """The nearest folder above a place that exists."""
    return next(one for one in path.absolute().parents if one.exists())
