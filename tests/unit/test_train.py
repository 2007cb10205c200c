"""Objectives, the loop, sources, recipes and steps."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from firewall.attack.gradient import pgd
from firewall.errors import ConfigError, TrainingError
from firewall.stages.registry import Registry
from firewall.train.fit_network import Images, Phase, Schedule, fit_network
from firewall.train.networks import NetworkSpec, make_network
from firewall.train.objectives import (
    AdversarialTraining,
    Apart,
    GaussianNoise,
    Inner,
    IntervalBound,
    LogitPairing,
    Mart,
    Objective,
    SingleStep,
    Standard,
    Trades,
)
from firewall.train.recipe import load
from firewall.train.sources import Labelled, SourceSpec, read, split
from firewall.train.steps import Steps, digest
from firewall.train.trainee import TrainedNetwork
from firewall.train.weight_perturbation import perturbed

ROOT = Path(__file__).parents[2]
SHAPE = (1, 8, 8)
INNER = Inner(0.2, steps=3)
OBJECTIVES: dict[str, Objective] = {
    "standard": Standard(),
    "fgsm": SingleStep(0.2, noise=1.0, step=1.25, clipped=True),
    "n-fgsm": SingleStep(0.2),
    "pgd": AdversarialTraining(INNER, clean_weight=1.0),
    "logit-pairing": LogitPairing(INNER),
    "trades": Trades(INNER),
    "mart": Mart(INNER),
    "crown": IntervalBound(0.2, 0.5, None, crown=True),
    "noise": GaussianNoise(0.05),
    "interval": IntervalBound(0.2, 0.5, INNER),
}


def network(seed: int = 0) -> Any:
    return make_network(NetworkSpec(width=8, hidden=32), SHAPE, 10, seed)


def digits(rows: slice) -> Images:
    found, _ = read(SourceSpec(source="digits", channels=1, height=8, width=8), Path())
    return Images(torch.from_numpy(found.x[rows]), torch.from_numpy(found.y[rows]))


TRAIN, SELECTION = slice(0, 1000), slice(1000, 1200)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_is_finite_repeats_itself_and_has_a_gradient(name: str) -> None:
    net = network()
    x, y = digits(slice(0, 32)).batch(torch.arange(32), torch.device("cpu"))
    seen: list[Tensor] = []

    class Model(TrainedNetwork):
        def __call__(self, point: Tensor) -> Tensor:
            seen.append(point.detach())
            return super().__call__(point)

    model = Model(net)
    losses = [OBJECTIVES[name](model, x, y, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(losses[0], losses[1])
    assert torch.isfinite(losses[0])
    gradients = torch.autograd.grad(losses[0], list(net.parameters()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    if name not in ("n-fgsm", "noise"):
        # Whatever is shown to the network is within the ball; N-FGSM is meant to leave it.
        reach = max(float((point - x).abs().max()) for point in seen)
        assert reach <= 0.2 + 1e-5


@pytest.mark.parametrize(
    "name", [name for name in OBJECTIVES if name not in ("standard", "n-fgsm")]
)
def test_a_ramp_begins_with_the_image_itself(name: str) -> None:
    x, y = digits(slice(0, 16)).batch(torch.arange(16), torch.device("cpu"))
    seen: list[Tensor] = []

    class Model(TrainedNetwork):
        def __call__(self, point: Tensor) -> Tensor:
            seen.append(point.detach())
            return super().__call__(point)

    OBJECTIVES[name](Model(network()), x, y, torch.Generator().manual_seed(1), 0.25)
    # TRADES begins a hair beside the image.
    assert max(float((point - x).abs().max()) for point in seen) <= 0.25 * 0.2 + 5e-3


def test_a_schedule_ramps_within_its_phase() -> None:
    phases = (Phase(SingleStep(0.1), 2), Phase(IntervalBound(0.1), 4, ramp=0.5))
    found = schedule(phases=phases)
    assert [found.share(epoch, 0.5) for epoch in range(6)] == [1, 1, 0.25, 0.75, 1, 1]


def test_the_inner_attack_climbs() -> None:
    net = network()
    x, y = digits(slice(0, 64)).batch(torch.arange(64), torch.device("cpu"))

    model = TrainedNetwork(net)
    clean = F.cross_entropy(model(x), y)
    forged = Inner(0.2, 5).on_labels(model, x, y, torch.Generator().manual_seed(0))
    assert F.cross_entropy(model(forged), y) > clean
    assert not forged.requires_grad


def test_trades_is_its_definition() -> None:
    """With no inner step left the second term is the KL of what a hair's breadth changes."""
    net = network()
    x, y = digits(slice(0, 16)).batch(torch.arange(16), torch.device("cpu"))

    model = TrainedNetwork(net)
    loss = Trades(Inner(0.2, steps=1, step=1e-9), beta=6.0)(
        model, x, y, torch.Generator().manual_seed(0)
    )
    assert loss.item() == pytest.approx(F.cross_entropy(model(x), y).item(), abs=1e-3)


def test_perturbed_weights_are_put_back_and_raise_the_loss() -> None:
    net = network()
    x, y = digits(slice(0, 64)).batch(torch.arange(64), torch.device("cpu"))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    loss = F.cross_entropy(net(x).logits, y)
    with perturbed(net, loss, 0.05):
        raised = F.cross_entropy(net(x).logits, y)
        moved = (net.hidden.weight - before["hidden.weight"]).norm() / before[
            "hidden.weight"
        ].norm()
    assert raised > loss
    assert moved.item() == pytest.approx(0.05, rel=1e-3)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def schedule(**changes: Any) -> Schedule:
    phases = (Phase(SingleStep(0.1), 2), Phase(AdversarialTraining(Inner(0.1, 3, 0.5)), 2))
    return Schedule(
        **{"phases": phases, "radius": 0.1, "batch": 64, "rate": 5e-3, "gamma": 0.005} | changes
    )


def test_killed_and_started_again_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole, parts = network(), network()
    log = fit_network(whole, digits(TRAIN), digits(SELECTION), schedule(), tmp_path / "a", seed=3)

    class Killed(Exception):
        pass

    def dies(line: str) -> None:
        if line.startswith("epoch 2"):
            raise Killed

    with pytest.raises(Killed):
        fit_network(
            parts, digits(TRAIN), digits(SELECTION), schedule(), tmp_path / "b", seed=3,
            progress=dies,
        )  # fmt: skip
    again = network(seed=99)
    told: list[str] = []
    resumed = fit_network(
        again, digits(TRAIN), digits(SELECTION), schedule(), tmp_path / "b", seed=3,
        progress=told.append,
    )  # fmt: skip
    assert told[0] == "going on after epoch 2 of 4"
    assert resumed == log
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    lines = (tmp_path / "b" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]
    # All is in the checkpoint: a log that is gone comes back.
    (tmp_path / "b" / "log.jsonl").unlink()
    fit_network(again, digits(TRAIN), digits(SELECTION), schedule(), tmp_path / "b", seed=3)
    assert (tmp_path / "b" / "log.jsonl").read_text().splitlines() == lines


def test_an_epoch_may_be_several_passes(tmp_path: Path) -> None:
    """As many steps over the same rows, and fewer looks at selection data."""

    class Counting:
        def __init__(self) -> None:
            self.rows: list[int] = []

        def __call__(
            self, model: Any, x: Tensor, y: Tensor, generator: torch.Generator, share: float
        ) -> Tensor:
            self.rows.append(len(x))
            return F.cross_entropy(model(x), y)

    looks: dict[int, int] = {}
    for passes, epochs in ((1, 4), (2, 2)):
        objective = Counting()
        changes = {"phases": (Phase(objective, epochs),), "passes": passes, "gamma": 0.0}
        log = fit_network(
            network(), digits(TRAIN), digits(SELECTION), schedule(**changes),
            tmp_path / f"{passes}", seed=0,
        )  # fmt: skip
        looks[passes] = len(log)
        assert objective.rows == [64] * (4 * (1000 // 64))
    assert looks == {1: 4, 2: 2}


def test_bfloat16_is_left_alone_where_the_processor_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Emulated it is slower than float32."""
    x = torch.rand(4, *SHAPE)
    plain = TrainedNetwork(network())(x)
    monkeypatch.setattr("firewall.train.trainee.computes_bfloat16", lambda device: False)
    assert torch.equal(TrainedNetwork(network(), bfloat16=True)(x), plain)
    monkeypatch.setattr("firewall.train.trainee.computes_bfloat16", lambda device: True)
    rounded = TrainedNetwork(network(), bfloat16=True)(x)
    assert not torch.equal(rounded, plain)
    assert torch.allclose(rounded, plain, atol=0.05)


@pytest.mark.slow
def test_a_network_kept_apart_has_gradients_of_its_own(tmp_path: Path) -> None:
    def fitted(name: str, seed: int, objective: Objective) -> Any:
        net = network(seed)
        plan = schedule(phases=(Phase(objective, 10),), gamma=0.0)
        fit_network(net, digits(TRAIN), digits(SELECTION), plan, tmp_path / name, seed=seed)
        return lambda x: net(x).logits

    first = fitted("first", 0, Standard())
    alike = fitted("alike", 1, Standard())
    apart = fitted("apart", 1, Apart(Standard(), (first,), 1.0))
    x, y = digits(slice(1200, 1400)).batch(torch.arange(200), torch.device("cpu"))

    def gradient(model: Any) -> Tensor:
        point = x.clone().requires_grad_(True)
        (found,) = torch.autograd.grad(F.cross_entropy(model(point), y, reduction="sum"), point)
        return found.flatten(1)

    likeness = [
        float(F.cosine_similarity(gradient(first), gradient(one), eps=1e-20).mean())
        for one in (alike, apart)
    ]
    assert likeness[1] < likeness[0] - 0.15
    assert float((apart(x).argmax(1) == y).float().mean()) > 0.8


def test_adversarial_training_makes_robust(tmp_path: Path) -> None:
    stands = {}
    for name in ("standard", "pgd"):
        net = network()
        objective = OBJECTIVES["standard"] if name == "standard" else AdversarialTraining(INNER)
        fit_network(
            net, digits(TRAIN), digits(SELECTION),
            schedule(phases=(Phase(objective, 10),), radius=0.2, gamma=0.0), tmp_path / name,
            seed=0,
        )  # fmt: skip
        x, y = digits(slice(1200, 1400)).batch(torch.arange(200), torch.device("cpu"))

        def model(point: Tensor, net: Any = net) -> Tensor:
            logits: Tensor = net(point).logits
            return logits

        forged = pgd(0.2, 20)(model, x, y)
        stands[name] = float((model(forged).argmax(1) == y).float().mean())
    assert stands["pgd"] > stands["standard"] + 0.2


def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    class Breaks:
        calls = 0

        def __call__(
            self, model: Any, x: Tensor, y: Tensor, generator: Any, share: float = 1.0
        ) -> Tensor:
            Breaks.calls += 1
            scale = float("nan") if Breaks.calls > 20 else 1.0
            return F.cross_entropy(model(x), y) * scale

    broken = schedule(phases=(Phase(Breaks(), 3),), gamma=0.0)
    with pytest.raises(TrainingError, match=r"the loss is nan in epoch 2; lower \[train\] rate"):
        fit_network(network(), digits(TRAIN), digits(SELECTION), broken, tmp_path, seed=0)
    assert (tmp_path / "checkpoint.pt").exists()


def pictures(folder: Path, classes: dict[str, int]) -> None:
    rng = np.random.default_rng(0)
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03d}.png")


SPEC = SourceSpec(source="folder", height=16, width=16)


def test_a_folder_a_class(tmp_path: Path) -> None:
    pictures(tmp_path, {"cat": 60, "dog": 70})
    found, test = read(SPEC, tmp_path)
    assert test is None
    assert found.labels == ("cat", "dog")
    assert found.x.shape == (130, 3, 16, 16)
    assert np.bincount(found.y).tolist() == [60, 70]
    parts = split(SPEC, found, None)
    assert sum(len(part) for part in parts.values()) == 130
    # Where an image goes depends on its content alone.
    reordered = found.take(np.random.default_rng(1).permutation(130))
    again = split(SPEC, reordered, None)
    for part, one in parts.items():
        assert {row.tobytes() for row in one.x} == {row.tobytes() for row in again[part].x}


def test_some_of_the_rows_come_in_the_same_shares(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (4000, 1, 16, 16), dtype=np.uint8)
    every = Labelled(x, np.arange(4000) % 2, ("a", "b"))
    whole = split(SPEC, every, None)
    some = split(SPEC.model_copy(update={"rows": 1000}), every, None)
    assert sum(len(part) for part in some.values()) == 1000
    for part, one in some.items():
        assert len(one) == pytest.approx(len(whole[part]) / 4, rel=0.35)
        assert {row.tobytes() for row in one.x} < {row.tobytes() for row in whole[part].x}


def test_equal_images_are_never_in_two_parts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (200, 3, 16, 16), dtype=np.uint8)
    doubled = Labelled(np.concatenate([x, x]), np.tile(np.arange(200) % 2, 2), ("a", "b"))
    parts = split(SPEC, doubled, doubled.take(np.arange(20)))
    seen: set[bytes] = set()
    for one in parts.values():
        mine = {row.tobytes() for row in one.x}
        assert not mine & seen
        seen |= mine


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: pictures(folder, {"cat": 5}), "1 class in"),
        (lambda folder: None, "holds no folders; expected one a class"),
        (lambda folder: pictures(folder, {"cat": 5, "dog": 0}), "dog holds no image"),
        (lambda folder: pictures(folder, {"cat": 4, "dog": 4}) or _spoil(folder),
         "cat/000.png: "),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_data_set(make: Any, words: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(ConfigError) as caught:
        split(SPEC, *read(SPEC, tmp_path))
    assert words in str(caught.value)


def _spoil(folder: Path) -> None:
    (folder / "cat" / "000.png").write_bytes(b"no picture")
    (folder / "dog" / "001.png").write_bytes((folder / "dog" / "001.png").read_bytes()[:60])


def test_parquet_and_npz(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    pictures(tmp_path / "p", {"a": 3})
    data = [path.read_bytes() for path in sorted((tmp_path / "p" / "a").iterdir())]
    table = pyarrow.table({"image": data, "label": [0, 1, 1]})
    parquet.write_table(table, tmp_path / "t.parquet")
    spec = SourceSpec(source="parquet", path="t.parquet", height=16, width=16)
    found, _ = read(spec, tmp_path)
    assert found.y.tolist() == [0, 1, 1]
    assert found.x.shape == (3, 3, 16, 16)
    x = np.random.default_rng(0).random((4, 1, 8, 8), np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=np.array([0, 2, 2, 0]))
    spec = SourceSpec(source="npz", path="d.npz", channels=1, height=8, width=8)
    with pytest.raises(ConfigError, match="no image has label 1"):
        read(spec, tmp_path)
    np.savez(tmp_path / "d.npz", x=x, y=np.array([0, 1, 1, 0]))
    with pytest.raises(ConfigError, match=r"images are \[1, 8, 8\]; \[data\] says \[3, 8, 8\]"):
        read(spec.model_copy(update={"channels": 3}), tmp_path)


RECIPES = sorted((ROOT / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_ships_is_valid(path: Path, registry: Registry) -> None:
    recipe = load(path, registry)
    assert recipe.name == path.stem
    assert recipe.train.schedule().epochs > 0


def test_all_mistakes_of_a_recipe_come_together(registry: Registry, tmp_path: Path) -> None:
    text = (ROOT / "recipes" / "digits-smoke.toml").read_text()
    path = tmp_path / "wrong.toml"
    path.write_text(
        text.replace("radius = 0.1", "radius = -0.1")
        .replace('objective = "trades"', 'objective = "magic"')
        .replace('plugin = "feature-norm"', 'plugin = "nothing-like-it"')
        .replace("rows = 100", 'rows = "many"')
    )
    with pytest.raises(ConfigError) as caught:
        load(path, registry)
    text = str(caught.value)
    assert text.startswith("recipe wrong.toml: 4 mistakes: ")
    for words in ("key 'train.radius' should be greater than 0, got -0.1",
                  "train.phases[1].objective", "evaluate.rows", "nothing-like-it"):  # fmt: skip
        assert words in text
    assert "\n" not in text
    path.write_text("name = [")
    with pytest.raises(ConfigError, match="not TOML"):
        load(path, registry)


def test_a_step_is_done_once_and_found_again(tmp_path: Path) -> None:
    told: list[str] = []
    steps = Steps(tmp_path, told.append)
    done: list[int] = []

    def work(folder: Path) -> None:
        done.append(1)
        (folder / "result").write_text("x")

    first = steps.run("one", {"a": 1}, work)
    assert steps.run("one", {"a": 1}, work) == first
    other = steps.run("one", {"a": 2}, work)
    assert other != first
    assert len(done) == 2
    assert digest(first) == digest(other)
    assert told == ["one", "one: done before", "one"]


def test_a_full_disk_is_a_sentence_and_loses_nothing(tmp_path: Path) -> None:
    steps = Steps(tmp_path, lambda line: None)
    kept = steps.run("one", {}, lambda folder: (folder / "result").write_text("x") and None)

    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "big"))

    with pytest.raises(TrainingError, match=r"two: .*big: the disk is full; what was finished"):
        steps.run("two", {"before": digest(kept)}, full)
    assert (kept / "result").read_text() == "x"
    again = steps.run(
        "two", {"before": digest(kept)}, lambda f: (f / "big").write_text("y") and None
    )
    assert (again / "big").exists()


def test_quantised_inputs_pass_gradients() -> None:
    net = make_network(NetworkSpec(width=8, hidden=32, levels=16), SHAPE, 10, 0)
    x = torch.rand(4, *SHAPE, requires_grad=True)
    logits = net(x).logits
    rounded = torch.round(x.detach() * 15) / 15
    assert torch.allclose(logits, net(rounded).logits, atol=1e-6)
    logits.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert isinstance(net, nn.Module)
