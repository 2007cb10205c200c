"""`firewall gan evaluate` and `export`: what generated images are worth, and handing them on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firewall.cli.shared import Json
from firewall.errors import ConfigError

if TYPE_CHECKING:
    from firewall.generate.store import StoredGenerator
    from firewall.train.fit_network import Images

Folder = Annotated[
    Path, typer.Argument(help="Folder of a generator: steps/generator-* of a recipe's run.")
]
RecipePath = Annotated[
    Path, typer.Argument(help="Recipe whose [data] the generator was trained on.")
]
Rows = Annotated[int, typer.Option(min=100, help="Number of images to generate, over all classes.")]
Own = Annotated[
    Path | None,
    typer.Option(
        help="ONNX file of your own feature extractor: takes images, returns "
        "`features` and optionally `logits`."
    ),
]
Steps = Annotated[
    int,
    typer.Option(
        min=0, help="Steps of each training on generated and on real images (0 = no training)."
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of the random draws.")]


def evaluate(
    generator: Folder,
    recipe: RecipePath,
    out: Annotated[
        Path, typer.Option(help="Folder for the results; an unfinished audit in it is resumed.")
    ],
    rows: Rows = 10_000,
    extractor: Own = None,
    steps: Steps = 2000,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Judge a generator: distances, precision and recall, privacy, and training on its images."""
    _, found, _ = _audited(generator, recipe, out, rows, extractor, steps, seed)
    if as_json:
        print(json.dumps(found, allow_nan=False))
        return
    floor = found["floor"]
    if found["extractor_accuracy"] is not None:
        print(f"{'extractor, real images right':36} {found['extractor_accuracy']:.1%}")
    for title, value in (
        ("Fréchet distance", f"{found['frechet_distance']:.3g}"),
        ("  of real training images", f"{floor['frechet_distance']:.3g}"),
        *(
            (f"  of {name}", f"{one['frechet_distance']:.3g}")
            for name, one in found["ceilings"].items()
        ),
        ("precision, recall", f"{found['precision']:.2f}, {found['recall']:.2f}"),
        ("density, coverage", f"{found['density']:.2f}, {found['coverage']:.2f}"),
        *(
            [("class agreement", f"{found['class_agreement']:.1%}")]
            if "class_agreement" in found
            else []
        ),
        ("membership attack, AUROC", f"{found['privacy']['membership_auroc']:.3f}"),
    ):
        print(f"{title:36} {value}")
    for rate, share in found["privacy"]["true_positives_at"].items():
        print(f"{f'  members found at {float(rate):.1%}':36} {share:.2%}")
    trained = found.get("trained_on")
    if trained:
        print(f"{'trained on them, right':36} {trained['accuracy']['generated']:.1%}")
        print(f"{'  on as many real ones':36} {trained['accuracy']['real']:.1%}")
        print(f"{'  the two agree':36} {trained['agree']:.1%}")
        print(f"{'  two real trainings agree':36} {trained['seed_to_seed']:.1%}")
    print(f"{out / 'judge.json'}, {out / 'samples.png'}, {out / 'neighbours.png'}")


def export(
    generator: Folder,
    recipe: RecipePath,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for the data set; only its subfolder `set` is meant to be passed on."
        ),
    ],
    rows: Rows = 10_000,
    extractor: Own = None,
    steps: Steps = 2000,
    seed: Seed = 0,
) -> None:
    """Write a generated data set with its audit.

    `OUT/set` holds images, audit and a card. `OUT/internal` shows training images and must stay.
    """
    stored, found, made = _audited(
        generator, recipe, out / "internal", rows, extractor, steps, seed
    )
    from firewall.generate.handout import write_handout

    write_handout(stored, made, found, out / "set")
    print(f"{out / 'set'}: {len(made)} images")
    if stored.spent is None:
        print(
            "WARNING: this generator was not trained with differential privacy; nothing is "
            "promised to those whose images it has seen",
            file=sys.stderr,
        )


def _audited(
    generator: Path,
    recipe: Path,
    folder: Path,
    rows: int,
    extractor: Path | None,
    steps: int,
    seed: int,
) -> tuple[StoredGenerator, dict[str, Any], Images]:
    try:
        from firewall.generate.audit import audit
        from firewall.generate.store import open_generator
        from firewall.generate.synthesise import sample
        from firewall.stages.registry import Registry
        from firewall.train.parts import read_parts
        from firewall.train.recipe import load
        from firewall.train.sources import images
    except ImportError as error:
        raise ConfigError(
            "gan: generators need more packages; pip install 'robustness-firewall[train]'"
        ) from error
    stored = open_generator(generator)
    loaded = load(recipe, Registry.discover())
    parts, _ = read_parts(loaded.data, recipe.parent)
    labels = parts["train"].labels
    if labels != stored.labels:
        raise ConfigError(
            f"generator: {len(stored.labels)} classes ({', '.join(stored.labels[:5])}, ...); the "
            f"recipe has {len(labels)} ({', '.join(labels[:5])}, ...)"
        )
    try:
        graph = extractor.read_bytes() if extractor is not None else None
    except OSError as error:
        raise ConfigError(f"--extractor: {extractor} cannot be read: {error.strerror}") from error
    if rows < len(labels):
        raise ConfigError(f"--rows: {rows}; the generator has {len(labels)} classes")
    made = sample(stored.network, rows, seed=seed)
    train, selection, test = (images(parts[name]) for name in ("train", "selection", "test"))
    try:
        result = audit(
            made, train, selection, test, len(stored.labels), folder, graph=graph, steps=steps,
            seed=seed, progress=lambda line: print(line, file=sys.stderr, flush=True),
        )  # fmt: skip
    except OSError as error:
        raise ConfigError(f"--out: {folder} cannot be written: {error.strerror}") from error
    return stored, result, made
