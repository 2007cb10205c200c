"""`firewall gan study`: people who tell generated images from real ones."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from firewall.cli.shared import Json
from firewall.errors import ConfigError

study_app = typer.Typer(
    help="Studies in which people tell generated images from real ones.", no_args_is_help=True
)
_MISSING = "gan: studies need more packages; pip install 'robustness-firewall[train]'"


@study_app.command()
def plan(
    generator: Annotated[
        Path, typer.Argument(help="Folder of a generator: steps/generator-* of a recipe's run.")
    ],
    recipe: Annotated[
        Path, typer.Argument(help="Recipe whose [data] the generator was trained on.")
    ],
    out: Annotated[Path, typer.Option(help="New folder for the study.")],
    mode: Annotated[
        str, typer.Option(help="Time that people have for a picture: timed or unlimited.")
    ] = "timed",
    places: Annotated[
        int, typer.Option(min=1, max=10_000, help="Number of people that can take part.")
    ] = 30,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of the random draws.")] = 0,
) -> None:
    """Plan a study: draw its pictures and their orders."""
    try:
        from firewall.generate.human import TIMED
        from firewall.generate.human import plan as planned
        from firewall.generate.store import open_generator
        from firewall.generate.synthesise import sample
        from firewall.stages.registry import Registry
        from firewall.train.parts import read_parts
        from firewall.train.recipe import load
    except ImportError as error:
        raise ConfigError(_MISSING) from error
    if mode not in ("timed", "unlimited"):
        raise ConfigError(f"--mode: {mode!r}; expected timed or unlimited")
    if out.exists():
        raise ConfigError(f"--out: {out} exists; a study is planned once")
    stored = open_generator(generator)
    loaded = load(recipe, Registry.discover())
    parts, _ = read_parts(loaded.data, recipe.parent)
    classes = len(stored.labels)
    made = sample(stored.network, -(-TIMED // classes) * classes, seed=seed)
    planned(
        parts["test"].x,
        made.x.numpy(),
        "timed" if mode == "timed" else "unlimited",
        out,
        places=places,
        seed=seed,
    )
    print(out)


@study_app.command()
def analyse(
    folder: Annotated[Path, typer.Argument(help="Folder of a study, with its answers.jsonl.")],
    as_json: Json = False,
) -> None:
    """Analyse the answers: how long people need, or how often they are wrong."""
    try:
        from firewall.generate.human import analyse as analysed
        from firewall.generate.human import read_study
    except ImportError as error:
        raise ConfigError(_MISSING) from error
    found = analysed(*read_study(folder))
    if as_json:
        print(json.dumps(asdict(found), allow_nan=False))
        return
    low, high = found.interval
    said = (
        f"{found.score:.0f} ms ({low:.0f} to {high:.0f})"
        if found.mode == "timed"
        else f"{found.score:.1%} wrong ({low:.1%} to {high:.1%}); 50 % is a guess"
    )
    print(f"HYPE, {found.mode}: {said}, {found.participants} people")
    print(f"generated images taken for real: {found.generated_as_real:.1%}")
    print(f"real images taken for generated: {found.real_as_generated:.1%}")
    if found.left_out:
        print(f"left out, not finished: {', '.join(found.left_out)}")
