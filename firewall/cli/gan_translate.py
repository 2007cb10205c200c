"""`firewall gan train-translator` and `translate`: images from one look to another."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from firewall.errors import ConfigError

_MISSING = "gan: translators need more packages; pip install 'robustness-firewall[train]'"


def train_translator(
    spec: Annotated[Path, typer.Argument(help="What to train, in TOML; docs/generators.md.")],
    out: Annotated[Path, typer.Option(help="Folder of the outcome; one that is there goes on.")],
) -> None:
    """Train a translator: between two looks, from edges or masks, or to a higher resolution."""
    try:
        from firewall.train.gan.translator import fit_translator, load_translator_spec
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
    translator: Annotated[Path, typer.Argument(help="What train-translator left.")],
    images: Annotated[Path, typer.Argument(help="A folder of images, or one image.")],
    out: Annotated[Path, typer.Option(help="Folder for the outcome, as PNG under their names.")],
    back: Annotated[bool, typer.Option("--back", help="The other way; of cycle alone.")] = False,
) -> None:
    """Translate images."""
    try:
        from firewall.train.gan.image_folder import FolderSpec, read_folder, read_image, write_image
        from firewall.train.gan.translator import open_translator
    except ImportError as error:
        raise ConfigError(_MISSING) from error
    opened = open_translator(translator)
    channels = opened.channels[1] if back else opened.channels[0]
    if channels not in (1, 3):
        raise ConfigError(f"translator: takes images of {channels} channels; expected 1 or 3")
    if images.is_file():
        found = read_image(images, channels)
    else:
        # Whatever size they have: networks of convolutions take each.
        spec = FolderSpec(path=str(images), channels=3 if channels == 3 else 1)
        found = read_folder(spec, Path(), "images")
    made = opened.translate(found.x.float() / 255, back=back)
    for name, one in zip(found.names, made, strict=True):
        write_image(one, out / f"{name}.png")
    print(f"{out}: {len(made)} images", file=sys.stderr)
