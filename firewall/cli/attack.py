"""`firewall attack`: forge one example."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firewall.cli.shared import Json, Trust, open_checked
from firewall.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from firewall.attack.one import Order, Outcome
    from firewall.attack.oracle import Replies
    from firewall.attack.victim import Victim
    from firewall.bundle.spec import InputSpec


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
        Path | None, typer.Option(help="For transfer: .onnx file of your own model, to forge on.")
    ] = None,
    shape: Annotated[
        str, typer.Option(help="For an .onnx target: channels,height,width of its input.")
    ] = "3,224,224",
    low: Annotated[
        float, typer.Option(help="For grpc://: value that the server takes for 0.")
    ] = 0.0,
    high: Annotated[
        float | None,
        typer.Option(
            help="For grpc://: value that the server takes for 1 (default: 255 for UINT8, else 1)."
        ),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(help="For grpc://: mean of each channel, instead of --low and --high."),
    ] = None,
    std: Annotated[
        str | None, typer.Option(help="For grpc://: standard deviation of each channel.")
    ] = None,
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
    values = (low, high, _numbers("mean", mean), _numbers("std", std))
    victim, replies, spec, close = _target(target, shape, trust, values, timeout)
    try:
        x = _image(image, spec)
        outcome = forge(
            order,
            x,
            replies,
            victim=victim,
            surrogate=_surrogate(surrogate, spec),
            label=label,
            start=_start(start, x, spec, order),
        )
    finally:
        close()
    _save(outcome.x, out)
    _print(order, target, outcome, out, as_json)


def _target(
    target: str,
    shape: str,
    trust: list[str] | None,
    values: tuple[float, float | None, tuple[float, ...] | None, tuple[float, ...] | None],
    timeout: float,
) -> tuple[Victim | None, Callable[[Tensor], Replies], InputSpec, Callable[[], None]]:
    """The network itself where there is one, how to ask it, its input, and how to hang up."""
    from firewall.bundle.spec import InputSpec
    from firewall.evaluation.onnx_target import OnnxTarget
    from firewall.evaluation.target import BundleTarget

    if "://" in target:
        from firewall.attack.live import Range, connect

        live = connect(target, Range(*values), timeout=timeout)
        return None, live, live.spec, live.close
    path = Path(target)
    if path.suffix == ".onnx":
        size = _shape(shape)
        classifier = OnnxTarget.read(path, size)
        if classifier.note is not None:
            print(classifier.note, file=sys.stderr)
        victim = classifier.victim(0.01)
        try:
            spec = InputSpec.model_validate(
                dict(zip(("channels", "height", "width"), size, strict=True))
            )
        except ValueError as error:
            raise ConfigError(f"--shape: {shape!r}; expected 1, 3 or 4 channels, 4 to 4096 pixels "
                              "a side") from error  # fmt: skip
        return victim, victim.replies, spec, lambda: None
    bundle = open_checked(path, trust)
    victim = BundleTarget(bundle).victim(0.01)
    return victim, victim.replies, bundle.manifest.input, lambda: None


def _shape(text: str) -> tuple[int, int, int]:
    try:
        channels, height, width = (int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--shape: {text!r}; expected channels,height,width") from None
    return channels, height, width


def _numbers(flag: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--{flag}: {text!r}; expected numbers, one a channel") from None


def _image(path: Path, spec: InputSpec) -> Tensor:
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
    # As most models are fed: an eighth more than the crop.
    resize = max(4, round(min(spec.height, spec.width) * 256 / 224))
    try:
        pixels = decode_image(data, spec, Preprocessing(resize=resize), field=str(path))
    except InvalidInput as error:
        raise ConfigError(str(error)) from error
    return torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255)


def _surrogate(path: Path | None, spec: InputSpec) -> Any:
    if path is None:
        return None
    from firewall.evaluation.onnx_target import OnnxTarget

    return OnnxTarget.read(path, (spec.channels, spec.height, spec.width)).victim(0.01).logits


def _start(text: str, x: Tensor, spec: InputSpec, order: Order) -> Tensor | None:
    import torch

    if text == "image":
        return None
    if text == "noise":
        return torch.rand(x.shape, generator=torch.Generator().manual_seed(order.seed))
    return _image(Path(text), spec)


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
