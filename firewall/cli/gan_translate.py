"""`firewall gan train-translator` and `translate`: images from one look to another."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from firewall.errors import ConfigError

_MISSING = "gan: translators need more packages; pip install 'robustness-firewall[train]'"


def train_translator(
    spec: Annotated[
        Path, typer.Argument(help="TOML file that says what to train; see docs/generators.md.")
    ],
    out: Annotated[
        Path,
        typer.Option(help="Folder for the translator; an unfinished training in it is resumed."),
    ],
) -> None:
    """Train a translator: between two looks, from edges or masks, or to a higher resolution."""
    try:
        from firewall.generate.translator import fit_translator, load_translator_spec
    except ImportError as error:
        raise ConfigError(_MISSING) from error
    fit_translator(
        load_translator_spec(spec),
        spec.parent,
        out,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(out)


def translate(
    translator: Annotated[Path, typer.Argument(help="Folder that train-translator wrote.")],
    images: Annotated[Path, typer.Argument(help="Folder of images, or one image file.")],
    out: Annotated[
        Path,
        typer.Option(help="Folder for the translated images, as PNG files under the same names."),
    ],
    back: Annotated[
        bool,
        typer.Option("--back", help="Translate in the other direction (only for the kind cycle)."),
    ] = False,
) -> None:
    """Translate images with a trained translator."""
    try:
        from firewall.generate.image_folder import images_at, read_image, write_image
        from firewall.generate.translator import open_translator
    except ImportError as error:
        raise ConfigError(_MISSING) from error
    opened = open_translator(translator)
    channels = opened.channels[1] if back else opened.channels[0]
    if channels not in (1, 3):
        raise ConfigError(f"translator: takes images of {channels} channels; expected 1 or 3")
    files = images_at(images)
    base = images if images.is_dir() else images.parent
    # One at a time: a folder may hold any number, and of any size that the network takes.
    for file in files:
        x = read_image(file, channels).x.float() / 255
        made = opened.translate(x, back=back)
        write_image(made[0], (out / file.relative_to(base)).with_suffix(".png"))
    print(f"{out}: {len(files)} images", file=sys.stderr)
