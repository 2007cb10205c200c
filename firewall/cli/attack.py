"""`firewall attack`: forge one example."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firewall.cli import describing
from firewall.cli.describing import (
    Activation,
    ChannelOrder,
    Layout,
    Mean,
    Output,
    Preset,
    Shape,
    Std,
    refuse_description,
    source_options,
)
from firewall.cli.shared import Json, Trust, open_checked
from firewall.cli.upstream import (
    UpstreamCa,
    UpstreamTokenFile,
    UpstreamUrl,
    bundle_target,
    upstream_settings,
)
from firewall.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from firewall.attack.live import Range
    from firewall.attack.one import Order, Outcome
    from firewall.attack.oracle import Replies
    from firewall.attack.victim import Victim
    from firewall.bundle.spec import InputSpec, Preprocessing
    from firewall.sources.options import SourceOptions
    from firewall.upstream.settings import UpstreamSettings


def attack(
    target: Annotated[
        str | None,
        typer.Argument(
            help="What to attack: a bundle, an .onnx file, a firewall at "
            "firewall://host:port[/model], or any server of the Open Inference "
            "Protocol at grpc://host:port/model."
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Argument(
            help="Image to start from: JPEG, PNG, or .npy with shape [C, H, W] and values "
            "in [0, 1]."
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="fgsm, bim, pgd, mi-fgsm, apgd, apgd-dlr, apgd-t, optimise, cw, deepfool, "
            "physical, adaptive; nes, spsa, zoo, square, hop-skip-jump; transfer."
        ),
    ] = "apgd",
    norm: Annotated[str, typer.Option(help="Norm of the perturbation: linf or l2.")] = "linf",
    eps: Annotated[
        float, typer.Option(help="Radius of the perturbation, for values in [0, 1].")
    ] = 8 / 255,
    steps: Annotated[int, typer.Option(help="Steps of iterated attacks.")] = 50,
    queries: Annotated[int, typer.Option(help="Queries that black-box attacks may make.")] = 1000,
    to: Annotated[
        int | None, typer.Option(help="Index of the class to reach (default: any wrong class).")
    ] = None,
    label: Annotated[
        int | None, typer.Option(help="Index of the true class (default: the target's answer).")
    ] = None,
    weight: Annotated[
        float,
        typer.Option(
            help="For optimise: weight of the distance to the image; 0 lets the result be "
            "any image."
        ),
    ] = 0.0,
    start: Annotated[
        str,
        typer.Option(
            help="For optimise and hop-skip-jump: start from the image, from noise, or from a file."
        ),
    ] = "image",
    surrogate: Annotated[
        Path | None,
        typer.Option(
            help="For transfer: .onnx file of your own model, to forge on; it takes what the "
            "target takes."
        ),
    ] = None,
    preset: Preset = None,
    mean: Mean = None,
    std: Std = None,
    value_range: describing.Range = None,
    channel_order: ChannelOrder = None,
    layout: Layout = None,
    shape: Shape = None,
    output: Output = None,
    activation: Activation = None,
    upstream: UpstreamUrl = None,
    upstream_ca: UpstreamCa = None,
    upstream_token_file: UpstreamTokenFile = None,
    blocks: Annotated[
        bool,
        typer.Option(help="Stop at the first refusal, as if the server had blocked the client."),
    ] = False,
    timeout: Annotated[
        float, typer.Option(help="For grpc://: seconds that a query may take.")
    ] = 30.0,
    seed: Annotated[int, typer.Option(help="Seed of the attack's random draws.")] = 0,
    out: Annotated[
        Path,
        typer.Option(help="File for the forged image: .png (8 bits a channel) or .npy (exact)."),
    ] = Path("forged.png"),
    linear_study: Annotated[
        bool,
        typer.Option(
            "--linear-study",
            help="Instead of an attack: draw a study of why small changes have large effects.",
        ),
    ] = False,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Forge one adversarial example for a bundle, an ONNX file, or a served model.

    The result is sent to the target once more, and the target's answer is printed.
    """
    if linear_study:
        _linear_study(eps, out, as_json)
        return
    if target is None or image is None:
        raise ConfigError("attack: expected TARGET and IMAGE, or --linear-study")
    from firewall.attack.one import Order, forge

    order = Order(
        method=method, norm=norm, radius=eps, steps=steps, queries=queries, target=to,
        weight=weight, ends_at_refusal=blocks, seed=seed,
    )  # fmt: skip
    if out.suffix not in (".png", ".npy"):
        raise ConfigError(f"--out: {out}; expected a .png or .npy file")
    options = source_options(
        preset=preset, mean=mean, std=std, value_range=value_range, channel_order=channel_order,
        layout=layout, shape=shape, output=output, activation=activation,
    )  # fmt: skip
    where = None
    if upstream is not None:
        where = upstream_settings(upstream, upstream_ca, upstream_token_file)
    aim = _target(target, options, trust, where, surrogate, timeout)
    victim, replies, spec, preprocessing, close = aim
    try:
        x = _image(image, spec, preprocessing)
        outcome = forge(
            order,
            x,
            replies,
            victim=victim,
            surrogate=_surrogate(surrogate, spec),
            label=label,
            start=_start(start, x, spec, preprocessing, order),
        )
    finally:
        close()
    _save(outcome.x, out)
    _print(order, target, outcome, out, as_json)


def _target(
    target: str,
    options: SourceOptions,
    trust: list[str] | None,
    upstream: UpstreamSettings | None,
    surrogate: Path | None,
    timeout: float,
) -> tuple[
    Victim | None,
    Callable[[Tensor], Replies],
    InputSpec,
    Preprocessing | None,
    Callable[[], None],
]:
    """Open what is attacked.

    Returns:
        The network itself where there is one, how to ask it, its input, how images become rows
        where the target says so, and how to hang up.

    """
    from firewall.evaluation.onnx_target import OnnxTarget

    path = Path(target)
    if upstream is not None and ("://" in target or path.suffix == ".onnx"):
        raise ConfigError("--upstream: is for a bundle of a served classifier")
    if "://" in target:
        from firewall.attack.live import connect

        live = connect(target, _range(options), timeout=timeout)
        return None, live, live.spec, None, live.close
    if path.suffix == ".onnx":
        classifier = OnnxTarget.read(path, None, options)
        if classifier.note is not None:
            print(classifier.note, file=sys.stderr)
        victim = classifier.victim(0.01)
        return victim, victim.replies, classifier.spec, None, lambda: None
    refuse_description(options, "the bundle says how its classifier is fed")
    bundle = open_checked(path, trust)
    aim = bundle_target(bundle, upstream, [] if surrogate is None else [surrogate])
    manifest = bundle.manifest
    victim = aim.victim(manifest.promised_rate or 0.01)
    known = victim if victim.differentiable else None
    return known, victim.replies, manifest.input, manifest.preprocessing, lambda: None


def _range(options: SourceOptions) -> Range:
    """Values of a served model's input, which its protocol does not say.

    Raises:
        ConfigError: an option is given that a served model answers itself.

    """
    from firewall.attack.live import Range

    for flag, value in (
        ("--layout", options.layout), ("--shape", options.shape), ("--output", options.output),
        ("--activation", options.activation),
    ):  # fmt: skip
        if value is not None:
            raise ConfigError(f"{flag}: does not apply; a served model describes itself")
    normalisation = options.normalisation
    order = options.channel_order or "RGB"
    if normalisation is None:
        return Range(channel_order=order)
    low, high = normalisation.low, normalisation.high
    if normalisation.mean is None or normalisation.std is None:
        return Range(low, high, channel_order=normalisation.channel_order)
    return Range(
        mean=tuple((value - low) / (high - low) for value in normalisation.mean),
        std=tuple(value / (high - low) for value in normalisation.std),
        channel_order=normalisation.channel_order,
    )


def _image(path: Path, spec: InputSpec, preprocessing: Preprocessing | None) -> Tensor:
    """A file as [1, C, H, W] in [0, 1], of the target's size."""
    import numpy as np
    import torch

    from firewall.bundle.spec import Preprocessing
    from firewall.decoding.decode import decode_image
    from firewall.errors import InvalidInput

    shape = (spec.channels, spec.height, spec.width)
    if path.suffix == ".npy":
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ConfigError(f"{path}: not a .npy file that can be read") from error
        if array.shape not in (shape, (1, *shape)) or array.dtype.kind != "f":
            raise ConfigError(f"{path}: {array.dtype} {list(array.shape)}; expected floats {shape}")
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ConfigError(f"{path}: expected values in [0, 1]")
        return torch.from_numpy(array.astype(np.float32).reshape(1, *shape))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    # Where the target does not say: as most models are fed, an eighth more than the crop.
    resize = max(4, round(min(spec.height, spec.width) * 256 / 224))
    prepared = preprocessing or Preprocessing(resize=resize)
    try:
        pixels = decode_image(data, spec, prepared, field=str(path))
    except InvalidInput as error:
        raise ConfigError(str(error)) from error
    return torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255)


def _surrogate(path: Path | None, spec: InputSpec) -> Any:
    if path is None:
        return None
    from firewall.evaluation.onnx_target import OnnxTarget
    from firewall.sources.describe import options_of

    shape = (spec.channels, spec.height, spec.width)
    return OnnxTarget.read(path, shape, options_of(spec)).module()


def _start(
    text: str, x: Tensor, spec: InputSpec, preprocessing: Preprocessing | None, order: Order
) -> Tensor | None:
    import torch

    if text == "image":
        return None
    if text == "noise":
        return torch.rand(x.shape, generator=torch.Generator().manual_seed(order.seed))
    return _image(Path(text), spec, preprocessing)


def _save(x: Tensor, out: Path) -> None:
    """Eight bits a channel, or exactly."""
    import numpy as np
    from PIL import Image

    try:
        if out.suffix == ".npy":
            with open(out, "wb") as file:
                np.save(file, x[0].numpy())
            return
        pixels = (x[0] * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(out)
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be written: {error.strerror}") from error


def _print(order: Order, target: str, outcome: Outcome, out: Path, as_json: bool) -> None:
    if as_json:
        body = {
            "target": target,
            "method": order.method,
            "norm": order.norm,
            "radius": order.radius,
            "before": vars(outcome.before),
            "after": vars(outcome.after),
            "succeeded": outcome.succeeded,
            "linf": outcome.linf,
            "l2": outcome.l2,
            "queries": outcome.queries,
            "refusals": outcome.refusals,
            "forged": str(out),
            **outcome.notes,
        }
        print(json.dumps(body, allow_nan=False))
        return
    for name, said in (("before", outcome.before), ("after", outcome.after)):
        what = "refused" if said.refused else f"class {said.label}, {said.probability:.1%}"
        print(f"{name:7} {what}")
    print(f"{'fooled' if outcome.succeeded else 'not fooled'}, moved by {outcome.linf:.4f} at most "
          f"and {outcome.l2:.3f} in all, {outcome.queries} queries, {outcome.refusals} refused: "
          f"{out}")  # fmt: skip
    for name, value in outcome.notes.items():
        print(f"{name.replace('_', ' ')} {value:.1%}")


def _linear_study(radius: float, out: Path, as_json: bool) -> None:
    try:
        from firewall.attack.linear_study import draw, study

        found = study(radius)
        draw(found, radius, out)
    except ImportError as error:
        raise ConfigError(
            "attack: matplotlib is not installed; pip install 'robustness-firewall[attack]'"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"--out: {out} cannot be drawn: {error}") from error
    if as_json:
        print(json.dumps([vars(one) for one in found], allow_nan=False))
        return
    print(f"{'dimensions':>10} {'sign(w)':>10} {'along w':>10} {'random':>10}")
    for one in found:
        print(f"{one.dimension:10} {one.sign:10.2f} {one.along:10.2f} {one.random:10.2f}")
    print(f"drawn: {out}")
