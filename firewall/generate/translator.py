"""A translator of images: from a TOML file and folders to networks on disk.

```toml
name = "studio-to-street"
kind = "cycle"               # or "paired", "edges", "super-resolution"

[first]                      # cycle, paired: what is translated
path = "studio"

[second]                     # what it is to look like
path = "street"

[cycle]                      # settings of the training; [paired] for the other kinds
steps = 10_000
```

- `cycle`: two folders that nothing pairs; both ways are learnt.
- `paired`: two folders, files of one name belong together: masks to images, for instance.
- `edges`: one folder, `second`; edges of its images to the images.
- `super-resolution`: one folder, `second`; its images at a fraction of their size to the images.

A folder of the outcome holds `translator.json` and weights; `state/` has the checkpoint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from firewall.bundle.spec import Spec
from firewall.documents import parse_json, parse_toml
from firewall.errors import ConfigError
from firewall.generate.fit_cycle import CycleSpec, fit_cycle
from firewall.generate.fit_paired import (
    GivenPairs,
    MadePairs,
    PairedSpec,
    edges,
    fit_paired,
    make_paired,
    shrunk,
)
from firewall.generate.image_folder import FolderSpec, ImageFolder, read_folder
from firewall.generate.translation_networks import ResidualTranslator
from firewall.train.fit_network import Images
from firewall.train.steps import claim, write_json
from firewall.validation import describe

_BATCH = 64


class TranslatorSpec(Spec):
    """What is trained."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    seed: int = Field(default=0, ge=0, lt=2**31)
    kind: Literal["cycle", "paired", "edges", "super-resolution"]
    #: What comes; of `cycle` and `paired`.
    first: FolderSpec | None = None
    #: What is to be made of it.
    second: FolderSpec
    cycle: CycleSpec = CycleSpec()
    paired: PairedSpec = PairedSpec()
    #: super-resolution: sides of what comes are this much smaller.
    factor: int = Field(default=2, ge=2, le=8)

    @model_validator(mode="after")
    def _sides(self) -> Self:
        wanted = self.kind in ("cycle", "paired")
        if wanted and self.first is None:
            raise ValueError(f"first: {self.kind!r} translates from a folder; name it in [first]")
        if not wanted and self.first is not None:
            raise ValueError(f"first: {self.kind!r} makes what comes of [second]; leave it out")
        return self


@dataclass(frozen=True)
class Translator:
    """Trained networks.

    Attributes:
        spec: as which they were trained.
        channels: of what comes, and of what is made.
        size: (height, width) of the training images.
        there: what comes [N, C', H, W] in [0, 1] to [N, C, H, W] in [0, 1].
        back: the other way; of `cycle` alone.

    """

    spec: TranslatorSpec
    channels: tuple[int, int]
    size: tuple[int, int]
    there: nn.Module
    back: nn.Module | None

    def translate(self, x: Tensor, *, back: bool = False) -> Tensor:
        """Translate images.

        Args:
            x: [N, C', H, W] in [0, 1]; of super-resolution, small ones.
            back: the other way.

        Returns:
            [N, C, H, W] in [0, 1]; of super-resolution, `factor` times the side.

        Raises:
            ConfigError: there is no way back, or the channels are not those of the training.

        """
        network, wanted = (self.back, self.channels[1]) if back else (self.there, self.channels[0])
        if network is None:
            raise ConfigError(f"--back: a translator of kind {self.spec.kind!r} has one way only")
        if x.shape[1] != wanted:
            raise ConfigError(
                f"translate: images of {x.shape[1]} channels; this translator takes {wanted}"
            )
        if self.spec.kind == "super-resolution":
            x = nn.functional.interpolate(
                x, scale_factor=float(self.spec.factor), mode="bicubic", align_corners=False
            ).clamp(0.0, 1.0)
        with torch.no_grad():
            return torch.cat([network(part) for part in torch.split(x, _BATCH)])


def load_translator_spec(path: Path) -> TranslatorSpec:
    """Read a translator's TOML file.

    Raises:
        ConfigError: the file cannot be read, or it is wrong; the error lists all mistakes.

    """
    try:
        return TranslatorSpec.model_validate(parse_toml(path.read_bytes(), f"translator: {path}"))
    except OSError as error:
        raise ConfigError(f"translator: {path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise ConfigError(f"translator {path.name}: {describe(error)}") from error


def fit_translator(
    spec: TranslatorSpec,
    base: Path,
    folder: Path,
    *,
    progress: Callable[[str], None] = lambda line: None,
) -> Translator:
    """Train, or go on with a training that was interrupted.

    Args:
        spec: what.
        base: folder from which its relative paths count.
        folder: for the outcome.
        progress: told each checkpoint.

    Raises:
        ConfigError: a folder of images is none, or the outcome's folder holds another training.
        TrainingError: there are too few images, or a loss is no longer a number.

    """
    first = read_folder(spec.first, base, "first") if spec.first is not None else None
    second = read_folder(spec.second, base, "second")
    _claim(spec, (first, second), folder)
    nets: dict[str, nn.Module]
    if spec.kind == "cycle":
        assert first is not None
        done = fit_cycle(
            first.x, second.x, spec.cycle, folder / "state", seed=spec.seed, progress=progress
        )
        nets, log, before = {"there": done.there, "back": done.back}, done.log, first.x.shape[1]
    else:
        pairs = _pairs(spec, first, second)
        made = fit_paired(pairs, spec.paired, folder / "state", seed=spec.seed, progress=progress)
        seen, _ = pairs.draw(torch.arange(1), torch.Generator().manual_seed(0))
        nets, log, before = {"there": made.network}, made.log, seen.shape[1]
    for name, network in nets.items():
        state = {key: value.contiguous() for key, value in network.state_dict().items()}
        save_file(state, folder / f"{name}.safetensors")
    write_json(folder / "log.json", log)
    channels, size = (before, second.x.shape[1]), (second.x.shape[2], second.x.shape[3])
    body = {"spec": spec.model_dump(mode="json"), "channels": channels, "size": size}
    write_json(folder / "translator.json", body)
    return Translator(spec, channels, size, nets["there"], nets.get("back"))


def open_translator(folder: Path) -> Translator:
    """Read a trained translator.

    Raises:
        ConfigError: the folder holds none, or one that is damaged.

    """
    try:
        body = parse_json(
            (folder / "translator.json").read_bytes(),
            f"{folder}/translator.json",
            error=ConfigError,
        )
        spec = TranslatorSpec.model_validate(body["spec"])
        before, after = (int(one) for one in body["channels"])
        height, width = (int(one) for one in body["size"])
        nets: dict[str, nn.Module] = {}
        if spec.kind == "cycle":
            for name in ("there", "back"):
                nets[name] = ResidualTranslator(
                    before, after, width=spec.cycle.width, blocks=spec.cycle.blocks
                )
        else:
            nets["there"] = make_paired(spec.paired, before, after)
        for name, network in nets.items():
            network.load_state_dict(load_file(folder / f"{name}.safetensors"))
            network.eval().requires_grad_(False)
    except OSError as error:
        raise ConfigError(
            f"translator: {folder} holds no translator ({error.strerror}); firewall gan train "
            "makes one"
        ) from error
    except (
        ValueError, KeyError, TypeError, RuntimeError, SafetensorError, ValidationError,
    ) as error:  # fmt: skip
        raise ConfigError(f"translator: {folder} is damaged") from error
    return Translator(spec, (before, after), (height, width), nets["there"], nets.get("back"))


def _pairs(
    spec: TranslatorSpec, first: ImageFolder | None, second: ImageFolder
) -> GivenPairs | MadePairs:
    if first is not None:
        alone = sorted(set(first.names) ^ set(second.names))
        if alone:
            more = f" and {len(alone) - 1} more" if len(alone) > 1 else ""
            raise ConfigError(
                f"translate: {alone[0]}{more} stand on one side only; files of one name are a pair"
            )
        if first.x.shape[2:] != second.x.shape[2:]:
            raise ConfigError(
                f"translate: sides of {list(first.x.shape[2:])} and {list(second.x.shape[2:])}; "
                "pairs need one size: set height and width of both"
            )
        # Both are in order of their names.
        return GivenPairs(first.x, second.x)
    condition = edges if spec.kind == "edges" else shrunk(spec.factor)
    return MadePairs(Images(second.x, torch.zeros(len(second.x), dtype=torch.int64)), condition)


def _claim(
    spec: TranslatorSpec, sides: tuple[ImageFolder | None, ImageFolder], folder: Path
) -> None:
    """Refuse a folder in which something else was begun: its checkpoint is of other networks."""
    total = hashlib.sha256(spec.model_dump_json(exclude={"name"}).encode())
    for side in sides:
        if side is not None:
            total.update(side.x.numpy().tobytes())
    claim(
        folder / "state",
        total.hexdigest(),
        f"--out: {folder} holds a training with other images or settings; choose another folder",
    )
