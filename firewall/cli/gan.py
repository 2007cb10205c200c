"""`firewall gan`: pictures from generators that a recipe has trained, and more commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firewall.cli.gan_audit import evaluate, export
from firewall.cli.gan_study import study_app
from firewall.cli.gan_translate import train_translator, translate
from firewall.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from firewall.generate.store import StoredGenerator

gan_app = typer.Typer(help="Generators and translators of images.", no_args_is_help=True)
gan_app.command()(evaluate)
gan_app.command()(export)
gan_app.command(name="train-translator")(train_translator)
gan_app.command()(translate)
gan_app.add_typer(study_app, name="study")

Folder = Annotated[
    Path, typer.Argument(help="Folder of a generator: steps/generator-* of a recipe's run.")
]
_COLUMNS = 10
_SEEDS = 2**31 - 1


@gan_app.command()
def sample(
    generator: Folder,
    out: Annotated[
        Path,
        typer.Option(help="File for the samples: one picture (.png), or images and labels (.npz)."),
    ],
    rows: Annotated[int, typer.Option(min=1, help="Number of images, over all classes.")] = 100,
    label: Annotated[
        str | None, typer.Option(help="Name of the only class to draw (default: all classes).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=_SEEDS, help="Seed of the latent codes.")] = 0,
) -> None:
    """Draw samples from a generator."""
    import numpy as np
    import torch

    stored = _open(generator)
    classes = range(len(stored.labels)) if label is None else [_class(stored, label)]
    each = -(-rows // len(classes))
    wanted = torch.tensor(list(classes)).repeat_interleave(each)
    draws = torch.Generator().manual_seed(seed)
    codes = torch.randn(len(wanted), stored.network.latent, generator=draws)
    made = _made(stored, codes, wanted)
    if out.suffix == ".npz":
        pixels = (made * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        try:
            np.savez_compressed(out, x=pixels, y=wanted.numpy())
        except OSError as error:
            raise ConfigError(f"--out: {out} cannot be written: {error.strerror}") from error
    else:
        _draw(made, out, min(each, _COLUMNS))
    print(f"{out}: {len(made)} images", file=sys.stderr)


@gan_app.command()
def arithmetic(
    generator: Folder,
    out: Annotated[Path, typer.Option(help="File for the picture (.png).")],
    first: Annotated[
        str, typer.Option(help="Seeds of latent codes, such as 3,14,15; their mean is used.")
    ],
    second: Annotated[str, typer.Option(help="Seeds of the codes to subtract.")],
    third: Annotated[str, typer.Option(help="Seeds of the codes to add.")],
    label: Annotated[
        str | None, typer.Option(help="Name of the class of all images (default: the first).")
    ] = None,
) -> None:
    """Draw latent arithmetic: first, second, third, and first - second + third."""
    import torch

    from firewall.generate.latent import arithmetic as combined

    stored = _open(generator)
    codes = [
        _mean(stored, text, name)
        for name, text in (("first", first), ("second", second), ("third", third))
    ]
    row = torch.stack([*codes, combined(*codes)])
    wanted = torch.full((len(row),), 0 if label is None else _class(stored, label))
    _draw(_made(stored, row, wanted), out, len(row))


@gan_app.command()
def interpolate(
    generator: Folder,
    out: Annotated[Path, typer.Option(help="File for the picture (.png).")],
    first: Annotated[
        int, typer.Option(min=0, max=_SEEDS, help="Seed of the latent code at the first end.")
    ] = 0,
    last: Annotated[
        int, typer.Option(min=0, max=_SEEDS, help="Seed of the latent code at the other end.")
    ] = 1,
    steps: Annotated[int, typer.Option(min=2, max=100, help="Number of images in a row.")] = 10,
) -> None:
    """Draw the path from one latent code to another, in a row for each class."""
    import torch

    from firewall.generate.latent import interpolate as between

    stored = _open(generator)
    way = between(_code(stored, first), _code(stored, last), steps)
    wanted = torch.arange(len(stored.labels)).repeat_interleave(steps)
    _draw(_made(stored, way.repeat(len(stored.labels), 1), wanted), out, steps)


def _open(folder: Path) -> StoredGenerator:
    try:
        from firewall.generate.store import open_generator
    except ImportError as error:
        raise ConfigError(
            "gan: generators need more packages; pip install 'robustness-firewall[train]'"
        ) from error
    return open_generator(folder)


def _class(stored: StoredGenerator, label: str) -> int:
    if label not in stored.labels:
        raise ConfigError(f"--label: {label!r}; expected one of {', '.join(stored.labels)}")
    return stored.labels.index(label)


def _code(stored: StoredGenerator, seed: int) -> Tensor:
    import torch

    return torch.randn(stored.network.latent, generator=torch.Generator().manual_seed(seed))


def _mean(stored: StoredGenerator, text: str, name: str) -> Tensor:
    import torch

    try:
        seeds = [int(part) for part in text.split(",")]
        if min(seeds) < 0 or max(seeds) > _SEEDS:
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"--{name}: {text!r}; expected seeds with commas between, such as 3,14,15"
        ) from None
    return torch.stack([_code(stored, seed) for seed in seeds]).mean(dim=0)


def _made(stored: StoredGenerator, codes: Tensor, labels: Tensor) -> Tensor:
    import torch

    with torch.no_grad():
        parts = [
            stored.network(codes[start : start + 500], labels[start : start + 500])
            for start in range(0, len(codes), 500)
        ]
    return torch.cat(parts)


def _draw(images: Tensor, out: Path, columns: int) -> None:
    from firewall.generate.grid import write_grid

    if out.suffix != ".png":
        raise ConfigError(f"--out: {out}; expected a name that ends in .png")
    try:
        write_grid(images, out, columns)
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be written: {error.strerror}") from error
