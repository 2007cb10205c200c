"""What generated images are worth to a robust classifier: four arms at as many steps of training.

    python -m benchmarks.generated NAME [--work FOLDER] [--jobs 2]

The recipe NAME says data, network, schedule and generator; a run of `benchmarks.recipes` in the
same work folder is gone on with. The arms: real images only; samples of a normal distribution for
each class; samples of the GAN; those that the screen left. Each arm but the first chooses its share
of a batch on selection data, with a seed of its own; then every arm is trained with other seeds,
and the first 1,000 sealed test images are attacked by APGD with cross-entropy, targeted APGD and
Square. Labels are smoothed in no arm: that alone moves robust accuracy. An interval has the spread
of seeds (Student's t) and that of images.
Writes `benchmarks/results/NAME/result.json` and pictures.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats

from benchmarks.environment import environment
from benchmarks.standing import standing
from firewall.generate.audit import audit
from firewall.generate.extractor import fit_extractor
from firewall.stages.registry import Registry
from firewall.train.augmentation import best_ratio, generated_images, load_generated
from firewall.train.fit_network import Images, fit_network
from firewall.train.networks import make_network
from firewall.train.parts import data_step, read_parts
from firewall.train.recipe import Recipe, load
from firewall.train.sources import images
from firewall.train.steps import Steps, digest, write_json

ROOT = Path(__file__).resolve().parents[1]
SEEDS, TESTED = 3, 1000
STEPS, TARGETED, QUERIES = 50, 20, 500
#: Steps and passes, at most, of the trainings that compare generated images with real ones.
TRAINED, PASSES = 800, 15
REAL, SCREENED = "real only", "GAN, screened"
#: The seed with which shares are chosen; no arm is measured with it.
CHOOSING = 1000


@cache
def own_code() -> str:
    """Of what decides the figures beside the package: another version of it starts anew."""
    return hashlib.sha256(
        b"".join(
            (Path(__file__).parent / name).read_bytes() for name in ("generated.py", "standing.py")
        )
    ).hexdigest()


@dataclass(frozen=True)
class Task:
    """A training and its attack."""

    recipe: Path
    work: Path
    arm: str
    source: Path | None
    ratio: float
    seed: int


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def train(task: Task) -> Path:
    """A step: the network, and by what it was chosen."""
    torch.set_num_threads(1)
    recipe, parts, steps, data = opened(task.recipe, task.work)
    inputs: dict[str, Any] = {
        "data": data,
        "network": recipe.network.model_dump(mode="json"),
        "train": recipe.train.model_dump(mode="json"),
        "seed": recipe.seed + task.seed,
        "source": digest(task.source) if task.source else None,
        "ratio": task.ratio,
        "benchmark": own_code(),
    }
    return steps.run("arm", inputs, partial(_train, task, recipe, parts))


def _train(task: Task, recipe: Recipe, parts: dict[str, Any], folder: Path) -> None:
    classes = len(parts["train"].labels)
    shape = (recipe.data.channels, recipe.data.height, recipe.data.width)
    network = make_network(recipe.network, shape, classes, recipe.seed + task.seed)
    generated = None
    if task.source is not None:
        generated = load_generated(task.source, task.ratio, 0.0, classes)
    name = f"{task.arm}, {task.ratio:.0%}, seed {task.seed}"
    log = fit_network(
        network, images(parts["train"]), images(parts["selection"]), recipe.train.schedule(),
        folder / "state", seed=recipe.seed + task.seed, generated=generated,
        progress=lambda line: say(f"{name}: {line}") if "0 of" in line else None,
    )  # fmt: skip
    torch.save(network.state_dict(), folder / "network.pt")
    write_json(folder / "log.json", log)


def attack(task: Task) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """[N] each: test images that the network is right about, and that stand."""
    place = train(task)
    recipe, parts, steps, _ = opened(task.recipe, task.work)
    effort = [TESTED, STEPS, TARGETED, QUERIES]
    inputs = {"arm": digest(place), "effort": effort, "benchmark": own_code()}
    found = steps.run("attacked", inputs, partial(_attack, task, recipe, parts, place))
    with np.load(found / "rows.npz") as arrays:
        return arrays["right"], arrays["stands"]


def _attack(task: Task, recipe: Recipe, parts: dict[str, Any], place: Path, folder: Path) -> None:
    shape = (recipe.data.channels, recipe.data.height, recipe.data.width)
    network = make_network(recipe.network, shape, len(parts["train"].labels), 0)
    network.load_state_dict(torch.load(place / "network.pt", weights_only=True))
    network.eval().requires_grad_(False)
    test = images(parts["test"])
    x, y = test.x[:TESTED].float() / 255, test.y[:TESTED]
    with torch.no_grad():
        right = (network(x).logits.argmax(dim=1) == y).numpy()
    stands = standing(
        lambda rows: network(rows).logits, x, y, recipe.train.radius,
        steps=STEPS, targeted=TARGETED, queries=QUERIES,
    )  # fmt: skip
    say(f"{task.arm}, seed {task.seed}: clean {right.mean():.1%}, robust {stands.mean():.1%}")
    np.savez(folder / "rows.npz", right=right, stands=stands)


def opened(path: Path, work: Path) -> tuple[Recipe, dict[str, Any], Steps, str]:
    """A recipe, its data, and the steps of its run."""
    recipe = load(path, Registry.discover())
    parts, _ = read_parts(recipe.data, path.parent)
    steps = Steps(work / recipe.name / "steps", lambda line: None)
    return recipe, parts, steps, digest(data_step(recipe.data, parts, steps))


def sources(path: Path, work: Path) -> dict[str, Path]:
    """Where the generated images of each arm lie."""
    recipe, parts, steps, data = opened(path, work)
    spec = recipe.augment
    assert spec is not None
    every = {
        "Gaussian": spec.model_copy(update={"source": "gaussian", "screen": None}),
        "GAN": spec.model_copy(update={"screen": None}),
        SCREENED: spec,
    }
    return {
        arm: generated_images(one, parts, data, recipe.seed, steps, progress=say)
        for arm, one in every.items()
    }


def reached(task: Task) -> float:
    """Of the epoch that was kept: accuracy under attack on selection data."""
    recipe = load(task.recipe, Registry.discover())
    log = json.loads((train(task) / "log.json").read_text())
    return max(float(epoch[recipe.train.choose]) for epoch in log)


def spread(rows: npt.NDArray[Any]) -> tuple[float, float]:
    """95 % around the mean of [seeds, N]: Student's t over seeds, and a normal one over images."""
    seeds, count = rows.shape
    of_seeds = stats.t.ppf(0.975, seeds - 1) * rows.mean(axis=1).std(ddof=1) / seeds**0.5
    of_images = stats.norm.ppf(0.975) * rows.mean(axis=0).std(ddof=1) / count**0.5
    half = float(np.hypot(of_seeds, of_images))
    return float(rows.mean()) - half, float(rows.mean()) + half


def judged(path: Path, work: Path, made: dict[str, Path]) -> dict[str, Any]:
    """Scores of each arm's images on the sealed test images.

    By an extractor of another seed than the one that screened: what was chosen by a network would
    look the better to it.
    """
    recipe, parts, steps, data = opened(path, work)
    classes = len(parts["train"].labels)
    found: dict[str, Any] = {}

    def fit(folder: Path) -> None:
        graph = fit_extractor(
            images(parts["train"]), images(parts["selection"]), classes, folder / "state",
            seed=recipe.seed + CHOOSING, progress=say,
        )  # fmt: skip
        (folder / "extractor.onnx").write_bytes(graph)

    judge_of = steps.run("judge", {"data": data, "benchmark": own_code()}, fit)
    graph = (judge_of / "extractor.onnx").read_bytes()
    # After each pass selection data are looked at, which takes longer than a pass over few images.
    trained = min(TRAINED, PASSES * len(parts["train"]) // 128)
    for arm in (SCREENED, "GAN", "Gaussian"):
        generated = load_generated(made[arm], 0.5, 0.0, classes).images

        def work_on(folder: Path, generated: Images = generated, arm: str = arm) -> None:
            audit(
                generated, images(parts["train"]), images(parts["selection"]),
                images(parts["test"]), classes, folder,
                graph=graph, steps=trained if arm == SCREENED else 0, seed=recipe.seed,
                progress=say,
            )  # fmt: skip

        inputs = {"of": digest(made[arm]), "judge": digest(judge_of), "benchmark": own_code()}
        place = steps.run("audit", inputs, work_on)
        found[arm] = json.loads((place / "judge.json").read_text())
        if arm == "GAN":
            found["pictures"] = place
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--work", type=Path, help="folder for what is done so far")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    measured_in = environment(("torch", "numpy", "onnxruntime-gpu"))
    path = ROOT / "recipes" / f"{arguments.name}.toml"
    work = arguments.work or Path(tempfile.mkdtemp())
    made = sources(path, work)
    recipe, parts, _, _ = opened(path, work)
    assert recipe.augment is not None
    scores = judged(path, work, made)
    pictures = scores.pop("pictures")
    first = {
        (arm, ratio): Task(path, work, arm, source, ratio, CHOOSING)
        for arm, source in made.items()
        for ratio in recipe.augment.ratios
    }
    first[REAL, 0.0] = Task(path, work, REAL, None, 0.0, CHOOSING)
    context = get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
        list(pool.map(train, first.values()))
        reach = {key: reached(task) for key, task in first.items()}
        chosen = {
            arm: max(recipe.augment.ratios, key=lambda ratio, arm=arm: reach[arm, ratio])  # type: ignore[misc]
            for arm in made
        } | {REAL: 0.0}
        tasks = {
            arm: [Task(path, work, arm, made.get(arm), ratio, seed) for seed in range(SEEDS)]
            for arm, ratio in chosen.items()
        }
        every = [task for row in tasks.values() for task in row]
        stood = dict(zip(every, pool.map(attack, every), strict=True))
    arms: dict[str, Any] = {}
    base = np.stack([stood[task][1] for task in tasks[REAL]])
    for arm in (REAL, *made):
        right = np.stack([stood[task][0] for task in tasks[arm]])
        stands = np.stack([stood[task][1] for task in tasks[arm]])
        ahead = stands.astype(float) - base
        arms[arm] = {
            "robust_accuracy": float(stands.mean()),
            "interval": spread(stands),
            "clean_accuracy": float(right.mean()),
            "seeds": SEEDS,
            "by_seed": stands.mean(axis=1).tolist(),
            # The last, incomplete batch of an epoch is left out.
            "steps": max(1, len(parts["train"]) // recipe.train.batch)
            * recipe.train.schedule().epochs
            * recipe.train.passes,
            "ratio": chosen[arm],
            "selection": {f"{r:g}": v for (one, r), v in reach.items() if one == arm},
            "ahead_of_real": {"value": float(ahead.mean()), "interval": spread(ahead)},
        }
    values = {0.0: reach[REAL, 0.0]} | {
        ratio: value for (arm, ratio), value in reach.items() if arm == SCREENED
    }
    raw = scores["GAN"]
    result = {
        "environment": measured_in,
        "recipe": json.loads(recipe.model_dump_json()),
        "rows": {part: len(one) for part, one in parts.items()} | {"attacked": TESTED},
        "effort": {"apgd": STEPS, "apgd_targeted": TARGETED, "square": QUERIES},
        "arms": arms,
        "chosen_ratio": best_ratio(values, len(parts["selection"])),
        "fid": raw["frechet_distance"],
        "precision": raw["precision"],
        "recall": raw["recall"],
        "class_agreement": raw["class_agreement"],
        "privacy": raw["privacy"],
        "scores": scores,
        "screen": json.loads((made[SCREENED] / "judge.json").read_text())["screen"],
    }
    out = arguments.out / arguments.name
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "result.json", result)
    for name in ("samples.png", "neighbours.png"):
        shutil.copyfile(pictures / name, out / name)


if __name__ == "__main__":
    main()
