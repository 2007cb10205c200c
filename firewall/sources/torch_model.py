"""Classifiers in torch: timm, a Hugging Face folder, or a function that returns a module.

A module is exported to an ONNX graph once, and is a file like any other from then on. Weights are
read as data: a file that would have to be unpickled into anything but tensors is refused.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from firewall.errors import ConfigError
from firewall.guard.compile import OPSET, export
from firewall.sources.onnx_graph import first_line
from firewall.sources.options import Hints, Normalisation, SourceOptions

#: Names of the exported graph's input and output.
INPUT, OUTPUT = "input", "logits"


@dataclass(frozen=True)
class TorchSource:
    """A module, and what its source says about its input.

    Attributes:
        module: [N, C, H, W], normalised as it was trained, to [N, K].
        hints: of its source.
        architecture: for people.
        size: channels, height and width of its input; None where nobody says it.

    """

    module: nn.Module
    hints: Hints
    architecture: str
    size: tuple[int, int, int] | None


def from_timm(name: str, options: SourceOptions) -> TorchSource:
    """Make a timm model, with weights of a file or those that timm has for it.

    Raises:
        ConfigError: timm is not installed, or does not know the model; the weights do not fit.

    """
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            f"timm:{name}: timm cannot be imported ({first_line(error)}); pip install timm"
        ) from error
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5])
        raise ConfigError(
            f"timm:{name}: timm {timm.__version__} has no such model"
            + (f"; near it: {close}" if close else "")
        )
    wanted: dict[str, Any] = {}
    weights = None
    if options.checkpoint is not None:
        weights = read_weights(options.checkpoint)
    try:
        if weights is None:
            module = timm.create_model(name, pretrained=True)
        else:
            module = timm.create_model(name, pretrained=False)
            head = str(module.default_cfg.get("classifier", ""))
            found = weights.get(f"{head}.weight")
            if found is not None and found.shape[0] != module.num_classes:
                wanted["num_classes"] = int(found.shape[0])
                module = timm.create_model(name, pretrained=False, **wanted)
    except Exception as error:  # of a foreign library, and of the network that it asks
        raise ConfigError(
            f"timm:{name}: its weights cannot be had ({first_line(error)}); name a file with "
            "--checkpoint"
        ) from error
    if weights is not None:
        _load(module, weights, options.checkpoint)
    config = module.pretrained_cfg
    size = tuple(int(one) for one in config.get("input_size", (3, 224, 224)))
    crop = float(config.get("crop_pct") or 1.0)
    hints = Hints(
        normalisation=Normalisation(
            mean=tuple(map(float, config["mean"])), std=tuple(map(float, config["std"]))
        ),
        size=(size[1], size[2]),
        resize=round(size[1] / crop),
        source="timm's configuration",
    )
    return TorchSource(module.eval(), hints, f"timm {name}", (size[0], size[1], size[2]))


def from_hugging_face(folder: Path) -> TorchSource:
    """Open a folder with config.json, preprocessor_config.json and weights.

    Raises:
        ConfigError: transformers is not installed, or the folder holds no image classifier.

    """
    for name in ("config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            raise ConfigError(
                f"hf:{folder}: {name} is missing; expected a folder as save_pretrained writes it, "
                "of the model and of its image processor"
            )
    config, processor = (
        _read_json(folder / name) for name in ("config.json", "preprocessor_config.json")
    )
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        from transformers import AutoModelForImageClassification
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            f"hf:{folder}: transformers cannot be imported ({first_line(error)}); pip install "
            "transformers"
        ) from error
    try:
        model = AutoModelForImageClassification.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # of a foreign library
        raise ConfigError(f"hf:{folder}: {first_line(error)}") from error
    hints, size = _processor_hints(processor, f"{folder.name}/preprocessor_config.json")
    labels = config.get("id2label")
    if isinstance(labels, dict) and labels:
        names = tuple(str(labels[key]) for key in sorted(labels, key=int))
        hints = Hints(
            hints.normalisation, hints.size, hints.resize, hints.fit, names, hints.source,
            hints.warnings,
        )  # fmt: skip
    kind = ", ".join(config.get("architectures") or [type(model).__name__])
    return TorchSource(_Logits(model).eval(), hints, kind, size)


def from_factory(target: str) -> TorchSource:
    """Call `package.module:function`, which returns a torch module. Runs its code.

    Raises:
        ConfigError: there is no such function, or it returns something else.

    """
    module_name, _, function = target.partition(":")
    # As `python -m` does: what lies in the working directory can be named.
    sys.path.insert(0, str(Path.cwd()))
    try:
        made = getattr(importlib.import_module(module_name), function)()
    except Exception as error:  # it is the user's own code
        raise ConfigError(f"{target}: {type(error).__name__}: {first_line(error)}") from error
    finally:
        sys.path.pop(0)
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{target}: returned {type(made).__name__}; expected a torch.nn.Module")
    return TorchSource(made.eval(), Hints(), target, None)


def export_module(source: TorchSource, size: tuple[int, int, int]) -> onnx.ModelProto:
    """Export a module to an ONNX graph, with any number of rows where it can be.

    Args:
        source: the module.
        size: channels, height and width of its input.

    Raises:
        ConfigError: it fails on such an input, or cannot be exported.

    """
    module = _First(source.module).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, *size, generator=generator) * 2 - 1
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            answered = module(x)
        except Exception as error:  # a foreign module may fail in any way
            raise ConfigError(
                f"{source.architecture}: fails on images {list(size)}: {first_line(error)}"
            ) from error
        if not isinstance(answered, Tensor) or answered.ndim < 2 or len(answered) != 2:
            shape = list(answered.shape) if isinstance(answered, Tensor) else type(answered)
            raise ConfigError(
                f"{source.architecture}: answers {shape} for 2 images; expected class scores "
                "[rows, classes]"
            )
        try:
            return onnx.load_from_string(export(module, {INPUT: x}, [OUTPUT]))
        except Exception:  # whatever the exporter says; the older one may do it
            pass
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "model.onnx"
            try:
                torch.onnx.export(
                    module, (x[:1],), path, dynamo=False, input_names=[INPUT],
                    output_names=[OUTPUT], opset_version=min(OPSET, 17),
                )  # fmt: skip
            except Exception as error:  # of the exporter's own classes, or of the module
                raise ConfigError(
                    f"{source.architecture}: cannot be exported to ONNX: {first_line(error)}"
                ) from error
            return onnx.load_model(path)


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """Read a file of tensors: .safetensors, or a .pth that holds tensors alone.

    Raises:
        ConfigError: it cannot be read, or holds something else.

    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and safetensors have classes of their own
        raise ConfigError(
            f"--checkpoint: {path} cannot be read as tensors: {first_line(error)}"
        ) from error
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(one, Tensor) for one in found.values()):
        raise ConfigError(f"--checkpoint: {path} holds no mapping of names to tensors")
    return {str(name).removeprefix("module."): value for name, value in found.items()}


class _First(nn.Module):
    """Class scores alone, of a module that may answer more."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        answered: Any = self.inner(x)
        first: Tensor = answered[0] if isinstance(answered, (tuple, list)) else answered
        return first


class _Logits(nn.Module):
    """The logits of a Hugging Face model."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(pixel_values=x).logits
        return logits


def _load(module: nn.Module, weights: Mapping[str, Tensor], path: Path | None) -> None:
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise ConfigError(
            f"--checkpoint: {path} does not fit the model: {' '.join(lines)[:300]}"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected a JSON object")
    return found


def _processor_hints(
    body: dict[str, Any], source: str
) -> tuple[Hints, tuple[int, int, int] | None]:
    """What an image processor does, as far as this project can do it too."""
    warnings_: list[str] = []
    rescale = float(body.get("rescale_factor") or 1 / 255) if body.get("do_rescale", True) else 1.0
    high = 255.0 * rescale
    normalisation = Normalisation(high=high)
    if body.get("do_normalize", True) and "image_mean" in body and "image_std" in body:
        normalisation = Normalisation(
            high=high,
            mean=tuple(map(float, body["image_mean"])),
            std=tuple(map(float, body["image_std"])),
        )
    size, crop = body.get("size"), body.get("crop_size")
    resized, shortest = _sides(size)
    cropped, _ = _sides(crop)
    final = cropped if body.get("do_center_crop") and cropped is not None else resized
    resize, fit = shortest, None
    if body.get("crop_pct") and shortest is not None:
        final = final or (shortest, shortest)
        resize = round(shortest / float(body["crop_pct"]))
    elif resized is not None and not body.get("do_center_crop"):
        fit = "squash"
    elif resized is not None:
        resize = min(resized)
    if body.get("resample") not in (None, 3):
        warnings_.append(
            f"{source} resizes with filter {body['resample']}; encoded images are resized bicubic"
        )
    hints = Hints(
        normalisation=normalisation,
        size=final,
        resize=resize,
        fit="squash" if fit == "squash" else "crop",
        source=source,
        warnings=tuple(warnings_),
    )
    return hints, None if final is None else (3, *final)


def _sides(size: Any) -> tuple[tuple[int, int] | None, int | None]:
    """Height and width, and the shorter side, of a size in a processor's configuration."""
    if isinstance(size, int):
        return (size, size), size
    if isinstance(size, dict):
        if "height" in size and "width" in size:
            return (int(size["height"]), int(size["width"])), None
        if "shortest_edge" in size:
            return None, int(size["shortest_edge"])
    return None, None
