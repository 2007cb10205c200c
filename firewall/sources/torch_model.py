"""Classifiers in torch: timm, a Hugging Face folder, or a function that returns a module.

A module is exported to an ONNX graph once, and is a file like any other from then on. Weights are
read as data: a file that would have to be unpickled into anything but tensors is refused.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from firewall.errors import ConfigError
from firewall.guard.compile import OPSET, export
from firewall.screening.classifier import Array
from firewall.sources.onnx_graph import first_line
from firewall.sources.options import (
    Hints,
    Normalisation,
    Reference,
    SourceOptions,
    reordered,
)

#: Pillow's filters for resizing, by number.
_FILTERS = {0: "nearest neighbour", 1: "Lanczos", 2: "bilinear", 4: "box", 5: "Hamming"}
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
        close = ", ".join(get_close_matches(name.lower(), timm.list_models(), 3))
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
            found = weights.tensors.get(f"{head}.weight")
            if found is not None and found.shape[0] != module.num_classes:
                wanted["num_classes"] = int(found.shape[0])
                module = timm.create_model(name, pretrained=False, **wanted)
    except Exception as error:  # of a foreign library, and of the network that it asks
        raise ConfigError(
            f"timm:{name}: its weights cannot be had ({first_line(error)}); name a file with "
            "--checkpoint"
        ) from error
    if weights is not None:
        _load(module, weights.tensors, options.checkpoint)
    config = module.pretrained_cfg
    warnings_ = () if weights is None or not weights.note else (weights.note,)
    size = tuple(int(one) for one in config.get("input_size", (3, 224, 224)))
    crop = float(config.get("crop_pct") or 1.0)
    hints = Hints(
        normalisation=Normalisation(
            mean=tuple(map(float, config["mean"])), std=tuple(map(float, config["std"]))
        ),
        size=(size[1], size[2]),
        resize=round(size[1] / crop),
        source="timm's configuration",
        warnings=warnings_,
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
    if config.get("problem_type") == "multi_label_classification":
        raise ConfigError(
            f"hf:{folder}: config.json says that several labels may apply together; a guard is for "
            "classifiers of which one class applies"
        )
    try:
        with quiet():
            model, loaded = AutoModelForImageClassification.from_pretrained(
                str(folder),
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:  # of a foreign library
        raise ConfigError(f"hf:{folder}: {first_line(error)}") from error
    for kind, words in (("missing_keys", "lack"), ("mismatched_keys", "have another shape of")):
        keys = sorted(str(one) for one in loaded.get(kind, ()))
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise ConfigError(
                f"hf:{folder}: the weights {words} {', '.join(keys[:3])}{more}, which config.json "
                "asks for; the folder is not of one model"
            )
    hints, size = _processor_hints(processor, f"{folder.name}/preprocessor_config.json")
    hints = replace(hints, reference=_reference(folder))
    labels = config.get("id2label")
    if isinstance(labels, dict) and labels:
        names = tuple(str(labels[key]) for key in sorted(labels, key=int))
        hints = replace(hints, labels=names)
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
    except (Exception, SystemExit) as error:  # it is the user's own code
        why = first_line(Exception(*error.args))
        raise ConfigError(f"{target}: {type(error).__name__}: {why}") from error
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
            shape = (
                list(answered.shape)
                if isinstance(answered, Tensor)
                else f"a {type(answered).__name__}"
            )
            raise ConfigError(
                f"{source.architecture}: answers {shape} for 2 images; expected a tensor of class "
                "scores [rows, classes], or a tuple that begins with one"
            )
        try:
            with quiet():
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


@dataclass(frozen=True)
class Weights:
    """Tensors of a checkpoint.

    Attributes:
        tensors: by name.
        note: which of several were taken, for people; empty where there was no choice.

    """

    tensors: Mapping[str, Tensor]
    note: str = ""


#: Keys of a checkpoint under which weights lie; averaged ones first, as timm takes them.
_WEIGHT_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")


def read_weights(path: Path) -> Weights:
    """Read a file of tensors: .safetensors, or a .pth that holds tensors alone.

    Raises:
        ConfigError: it cannot be read, or holds something else.

    """
    if not path.is_file():
        raise ConfigError(f"--checkpoint: {path} is no file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return Weights(load_file(path))
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and safetensors have classes of their own
        raise ConfigError(
            f"--checkpoint: {path} is no file of tensors alone ({type(error).__name__}); expected "
            ".safetensors, or a .pth that torch.save wrote of a state_dict. Files that would have "
            "to be unpickled into anything else are not read"
        ) from error
    note = ""
    if isinstance(found, dict):
        keys = [key for key in _WEIGHT_KEYS if isinstance(found.get(key), dict)]
        if len(keys) > 1:
            note = f"{path.name} holds {' and '.join(keys)}; {keys[0]} is used"
        if keys:
            found = found[keys[0]]
    if not isinstance(found, dict) or not all(isinstance(one, Tensor) for one in found.values()):
        raise ConfigError(f"--checkpoint: {path} holds no mapping of names to tensors")
    tensors = {str(name).removeprefix("module."): value for name, value in found.items()}
    return Weights(tensors, note)


def answers_of(source: TorchSource, wire: Array) -> npt.NDArray[np.float32]:
    """Ask a module about rows [N, C, H, W], one by one, as a server asks about one image."""
    module = _First(source.module).eval()
    rows = torch.from_numpy(np.ascontiguousarray(wire)).float()
    with torch.no_grad():
        parts = [module(rows[n : n + 1]) for n in range(len(rows))]
    found: npt.NDArray[np.float32] = torch.cat(parts).float().numpy()
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what libraries print and log from the terminal, until the block ends."""
    root = logging.getLogger()
    before = root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stderr(nowhere), \
                redirect_stdout(nowhere):  # fmt: skip
            yield
    finally:
        logging.disable(before)


def _reference(folder: Path) -> Reference | None:
    """The folder's own image processor; None where it cannot be made here."""
    from transformers import AutoImageProcessor

    try:
        with quiet():
            processor = AutoImageProcessor.from_pretrained(str(folder), local_files_only=True)
    except Exception:  # of a foreign library: it may need packages that are not here
        return None

    def ask(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        from PIL import Image

        with quiet():
            made = processor(Image.fromarray(image), return_tensors="np")["pixel_values"]
        found: npt.NDArray[np.float32] = np.asarray(made, np.float32)[0]
        return found

    return ask


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
    mean, std = _channels(body.get("image_mean")), _channels(body.get("image_std"))
    if body.get("do_normalize", True) and mean is not None and std is not None:
        normalisation = Normalisation(high=high, mean=mean, std=std)
    if body.get("do_flip_channel_order"):
        normalisation = reordered(normalisation, "BGR")
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
        name = _FILTERS.get(body["resample"], f"filter {body['resample']}")
        warnings_.append(
            f"{source} resizes by {name}; encoded images are resized bicubic here, which changes "
            "probabilities a little. Tensors are not affected"
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


def _channels(value: Any) -> tuple[float, ...] | None:
    """Mean or deviation of each channel, however it is written; None where it is not there."""
    if isinstance(value, (int, float)):
        return (float(value),)
    if isinstance(value, list) and value and all(isinstance(one, (int, float)) for one in value):
        return tuple(map(float, value))
    return None


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
