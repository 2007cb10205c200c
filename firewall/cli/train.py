"""`firewall train`: from a recipe to a signed bundle."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from firewall.cli.shared import Json
from firewall.errors import ConfigError


def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe (TOML file).")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the run; an unfinished run in it is resumed."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to train: cpu or cuda.")] = "cpu",
    jobs: Annotated[int, typer.Option(min=1, help="Number of processes of the evaluation.")] = 1,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Train nothing: read the data, print what they hold, and report whatever a run "
            "would refuse.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a recipe: train, build, evaluate, gate and sign a bundle.

    Writes bundle, evaluation.json and report.html. On several processors: torchrun
    --nproc-per-node N -m firewall train RECIPE --out DIR.
    """
    try:
        from firewall.stages.registry import Registry
        from firewall.train.pipeline import check as check_recipe
        from firewall.train.pipeline import run
        from firewall.train.processes import Processes
        from firewall.train.recipe import load
    except ImportError as error:
        raise ConfigError(
            "train: training needs more packages; pip install 'robustness-firewall[train,attack]'"
        ) from error
    from firewall.bundle.signing import user_signer

    registry = Registry.discover()
    loaded = load(recipe, registry)
    if check:
        _, inventory = check_recipe(loaded, recipe.parent, registry)
        if as_json:
            print(json.dumps(inventory.to_json(), allow_nan=False))
            return
        print("\n".join([*inventory.lines(), f"{recipe}: good"]))
        return
    if out is None:
        raise ConfigError("--out: missing; name a folder for the run")
    _check_device(device)
    processes = Processes.join(device)
    done = run(
        loaded,
        recipe.parent,
        out,
        user_signer(),
        registry,
        device=device,
        jobs=jobs,
        processes=processes,
        progress=(lambda line: print(line, file=sys.stderr, flush=True))
        if processes.first
        else (lambda line: None),
    )
    if done is None:
        return
    summary = done.summary
    if as_json:
        print(json.dumps(summary, allow_nan=False))
        return
    for warning in summary["evaluation"]["warnings"]:
        print(f"WARNING: {warning}")
    for title, part, key in (
        ("guard model, clean", "guard_model", "clean_accuracy"),
        ("firewall, clean accepted and right", "firewall", "clean_accepted_and_correct"),
        ("firewall, false positives", "firewall", "false_positive_rate"),
    ):
        print(f"{title:36} {summary[part][key]['value']:.1%}")
    if summary["certified"]:
        sure = summary["certified"]
        four = sure["paranoia_4"]["accepted_and_correct"]["value"]
        print(f"{'certified and right':36} {sure['accuracy']['value']:.1%}")
        print(f"{'paranoia 4, right and proven':36} {four:.1%}")
    for part in ("guard_model", "firewall"):
        low, high = summary[part]["interval"]
        title = f"{part.replace('_', ' ')}, robust, worst case"
        print(f"{title:36} {summary[part]['robust_accuracy']:.1%} ({low:.1%} to {high:.1%})")
    print(f"{done.bundle}, {out / 'evaluation.json'}, {out / 'report.html'}")


def _check_device(device: str) -> None:
    import torch

    if device not in ("cpu", "cuda"):
        raise ConfigError(f"--device: {device!r}; expected cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device: 'cuda' is not to be had here; use cpu")
