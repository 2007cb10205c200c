"""A trained generator on disk: `generator.json` says what it is, weights lie beside it.

generator.json             spec, shape, names of the classes
generator.safetensors      the averaged generator
discriminator.safetensors  as it was last
log.json                   figures along the way
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from firewall.documents import parse_json
from firewall.errors import ConfigError
from firewall.generate.fit_gan import fit_gan, make_players
from firewall.generate.networks import GenerativeNetwork
from firewall.generate.private import epsilon
from firewall.generate.spec import GanSpec
from firewall.train.fit_network import Images
from firewall.train.sources import content_hashes
from firewall.train.steps import write_json


@dataclass(frozen=True)
class StoredGenerator:
    """A frozen generator.

    Attributes:
        network: images from codes and classes.
        labels: names of the classes.
        spent: `epsilon` and `delta` of a private training; None of any other.

    """

    network: GenerativeNetwork
    labels: tuple[str, ...]
    spent: dict[str, float] | None = None


def fit_generator(
    spec: GanSpec,
    data: Images,
    labels: tuple[str, ...],
    seed: int,
    device: str,
    progress: Callable[[str], None],
    folder: Path,
) -> None:
    """A step of a recipe: play the game, and store what comes of it."""
    if spec.private is not None:
        # The promise is to each image: one that comes ten times would have a tenth of it.
        data = _unique(data)
    done = fit_gan(
        data, len(labels), spec, folder / "state", seed=seed, device=device, progress=progress
    )
    for name, network in (("generator", done.generator), ("discriminator", done.discriminator)):
        state = {key: value.contiguous() for key, value in network.state_dict().items()}
        save_file(state, folder / f"{name}.safetensors")
    write_json(folder / "log.json", done.log)
    body = {
        "gan": spec.model_dump(mode="json"),
        "shape": list(data.x.shape[1:]),
        "labels": list(labels),
        "spent": _spent(spec, len(data)),
    }
    write_json(folder / "generator.json", body)


def open_generator(folder: Path) -> StoredGenerator:
    """Read a stored generator.

    Raises:
        ConfigError: the folder holds none, or one that is damaged.

    """
    try:
        body = parse_json(
            (folder / "generator.json").read_bytes(), f"{folder}/generator.json", error=ConfigError
        )
        spec = GanSpec.model_validate(body["gan"])
        channels, height, width = (int(one) for one in body["shape"])
        labels = tuple(str(one) for one in body["labels"])
        network, _ = make_players(spec, (channels, height, width), len(labels), 0)
        network.load_state_dict(load_file(folder / "generator.safetensors"))
        spent = {key: float(value) for key, value in (body.get("spent") or {}).items()}
    except OSError as error:
        raise ConfigError(
            f"generator: {folder} holds no generator ({error.strerror}); a recipe with [augment] "
            "leaves one in its folder, under steps/generator-*"
        ) from error
    except (
        ValueError, KeyError, TypeError, RuntimeError, SafetensorError, ValidationError,
    ) as error:  # fmt: skip
        raise ConfigError(f"generator: {folder} is damaged") from error
    return StoredGenerator(network.eval().requires_grad_(False), labels, spent or None)


def _unique(data: Images) -> Images:
    """Each image once."""
    hashes = content_hashes(data.x.numpy())
    first = {one: row for row, one in reversed(list(enumerate(hashes)))}
    rows = torch.tensor(sorted(first.values()))
    return Images(data.x[rows], data.y[rows])


def _spent(spec: GanSpec, rows: int) -> dict[str, float] | None:
    """What a finished training has told of its images, at most."""
    if spec.private is None:
        return None
    steps = spec.steps * spec.ratio
    return {
        "epsilon": epsilon(spec.private, rows, spec.batch, steps),
        "delta": spec.private.delta,
    }
