"""Attacks that ask and ask, through the service: with monitors and without.

    python -m benchmarks.query_attacks --bundle BUNDLE [--data FOLDER] [--jobs 2]

BUNDLE is one of a Fashion-MNIST recipe; its signer is believed here. Three monitors are calibrated
on sealed test images that nobody attacks: near by pixels and near by thumbnails among a client's
requests, and near by thumbnails among everyone's, each with a third of the false alarms. Then

- a stream of clean requests of other images goes through a server, and false alarms are counted;
- numerical gradient (NES), Square and HopSkipJump attack clean images that are answered rightly,
  through a server without monitors and through one with them; a refused question tells an attacker
  nothing and costs one of its queries;
- the same with monitors by attackers who know of them: noise on every question, blending with
  other images, spreading over fifty identities, and waiting.

A forgery counts as found when it lies within the radius and a server that remembers nothing answers
it wrongly. Each attack has a server of its own, so that none finds what another has left there.
Writes `benchmarks/results/query-attacks/result.json`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.environment import environment
from firewall.attack.estimate import EstimatedGradient
from firewall.attack.hop_skip_jump import HopSkipJump
from firewall.attack.oracle import Oracle, Replies
from firewall.attack.square import Square
from firewall.bundle.store import Bundle, open_bundle
from firewall.client import Client, Verdict
from firewall.monitors.calibrate import calibrate
from firewall.monitors.registry import MonitorRegistry
from firewall.monitors.streams import Habits, benign
from firewall.screening.load import load_guard
from firewall.screening.policy import Policy
from firewall.screening.preprocess import to_wire
from firewall.screening.scores import log_softmax
from firewall.screening.wire_pixels import pixels
from firewall.serve.auth import Tokens
from firewall.train.data import load_idx
from firewall.train.steps import write_json
from tests.support.served import FREE_PORTS

OUT = Path(__file__).parent / "results" / "query-attacks" / "result.json"
RADIUS = 0.1
#: Clients of the stream, and of an attacker who spreads.
CLIENTS, IDENTITIES = 200, 50
#: Of test images: attacked ones are the first, the stream's and calibration's follow.
STREAM, CALIBRATION = 2000, 5000
SECTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("pixels", {"fingerprint": "pixels"}),
    ("thumbnails", {"fingerprint": "thumbnail"}),
    ("everyone", {"fingerprint": "thumbnail", "scope": "everyone"}),
)
#: Seconds for which an attacker who waits is remembered, and between its questions. What counts is
#: their ratio: of a monitor that remembers for an hour it is two minutes and a quarter.
REMEMBERED, PAUSE = 8.0, 0.3


@dataclass(frozen=True)
class Adaptation:
    """What an attacker does about monitors.

    Attributes:
        noise: of every question, uniform, either way.
        blend: weight of another clean image in every question.
        identities: among which questions go round.
        pause: seconds between questions about an image.

    """

    noise: float = 0.0
    blend: float = 0.0
    identities: int = 1
    pause: float = 0.0


@dataclass(frozen=True)
class Task:
    """One attack on one server."""

    bundle: Path
    folder: Path
    name: str
    attack: str
    monitors: bool
    queries: int
    adaptation: Adaptation = field(default_factory=Adaptation)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def opened(path: Path) -> Bundle:
    """The bundle, whoever signed it."""
    signed = json.loads((path / "signature.json").read_text())
    return open_bundle(path, {signed["public_key"]})


def data(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """[N, H, W, C] uint8 sealed test images and their labels."""
    x, y = load_idx(folder / "t10k-images-idx3-ubyte.gz", folder / "t10k-labels-idx1-ubyte.gz")
    return np.rint(x * 255).astype(np.uint8).transpose(0, 2, 3, 1), y


@contextmanager
def served(bundle: Path, folder: Path, policy: Path) -> Iterator[str]:
    """Address of a server of one's own."""
    key = folder / "signer.pub"
    key.write_text(json.loads((bundle / "signature.json").read_text())["public_key"])
    with tempfile.TemporaryFile("w") as errors:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "firewall", "serve", str(bundle), "--trust", str(key),
                "--host", "127.0.0.1", *FREE_PORTS, "--inference-threads", "1",
                "--policy", str(policy), "--tokens", str(folder / "tokens.toml"),
            ],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            event = json.loads(process.stdout.readline())
            # Its audit log would fill the pipe.
            drain = subprocess.Popen(["cat"], stdin=process.stdout, stdout=subprocess.DEVNULL)
            yield f"127.0.0.1:{event['grpc_port']}"
        finally:
            process.terminate()
            process.wait(30)
            drain.wait(30)


class Asker:
    """Asks a server, as an attacker who adapts does; remembers who spoke against a question."""

    def __init__(
        self, clients: list[Client], bundle: Bundle, adaptation: Adaptation, pool: Tensor
    ) -> None:
        self._clients, self._adaptation, self._pool = clients, adaptation, pool
        self._spec, self._classes = bundle.manifest.input, bundle.manifest.classifier.classes
        self._generator = torch.Generator().manual_seed(7)
        self._count = 0
        #: Of each question since this was emptied: whether a monitor spoke against it.
        self.by_monitor: list[bool] = []

    def __call__(self, x: Tensor) -> Replies:
        """Ask about [N, C, H, W] in [0, 1]."""
        one = self._adaptation
        if one.noise:
            x = x + one.noise * (2 * torch.rand(x.shape, generator=self._generator) - 1)
        if one.blend:
            rows = torch.randint(len(self._pool), (len(x),), generator=self._generator)
            x = (1 - one.blend) * x + one.blend * self._pool[rows]
        if one.pause:
            time.sleep(one.pause)
        client = self._clients[self._count % len(self._clients)]
        self._count += 1
        levels = torch.round(x.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
        scores = torch.full((len(x), self._classes), 1e-6)
        refused = torch.zeros(len(x), dtype=torch.bool)
        answers = client.predict(to_wire(levels, self._spec), top_k=self._classes)
        for row, answer in enumerate(answers):
            refused[row] = answer.verdict is Verdict.REJECT
            self.by_monitor.append(any(name in answer.reasons for name, _ in SECTIONS))
            for label in answer.labels:
                scores[row, label.index] = max(label.probability, 1e-6)
        return Replies(scores.log(), refused)


class Followed:
    """An oracle that knows when a monitor first spoke against an image."""

    def __init__(self, asker: Asker, rows: int, budget: int) -> None:
        self._asker = asker
        self._oracle = Oracle(asker, rows, budget)
        self.first = torch.full((rows,), -1)
        #: Questions that monitors spoke against.
        self.against = 0

    @property
    def queries(self) -> Tensor:
        """[N] that were asked."""
        return self._oracle.queries

    @property
    def refusals(self) -> Tensor:
        """[N] of them that were refused."""
        return self._oracle.refusals

    def may_ask(self, each: int = 1) -> Tensor:
        """As `Oracle.may_ask`."""
        return self._oracle.may_ask(each)

    def ask(self, x: Tensor, rows: Tensor) -> Replies:
        """As `Oracle.ask`."""
        before = self.queries.clone()
        replies = self._oracle.ask(x, rows)
        for row, spoke in zip(rows.tolist(), self._spoken(), strict=True):
            if spoke and self.first[row] < 0:
                self.first[row] = before[row] + 1
        return replies

    def ask_in_turn(self, x: Tensor, row: int) -> Replies:
        """As `Oracle.ask_in_turn`."""
        before = int(self.queries[row])
        replies = self._oracle.ask_in_turn(x, row)
        for place, spoke in enumerate(self._spoken()):
            if spoke and self.first[row] < 0:
                self.first[row] = before + place + 1
        return replies

    def _spoken(self) -> list[bool]:
        spoken, self._asker.by_monitor = self._asker.by_monitor, []
        self.against += sum(spoken)
        return spoken


def attacks(queries: int) -> dict[str, Callable[..., Tensor]]:
    """Settings that use a budget up."""
    pairs = 50
    steps = max(1, queries // (2 * pairs + 1))
    return {
        "NES": EstimatedGradient(RADIUS, steps=steps, pairs=pairs),
        "Square": Square(RADIUS, queries=queries),
        "HopSkipJump": HopSkipJump(RADIUS, iterations=256),
    }


def run(task: Task) -> dict[str, Any]:
    """One attack."""
    torch.set_num_threads(1)
    bundle = opened(task.bundle)
    with np.load(task.folder / "attacked.npz") as arrays:
        x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
        pool = torch.from_numpy(arrays["pool"])
    secrets = json.loads((task.folder / "secrets.json").read_text())
    policy = "monitors.toml" if task.monitors else "plain.toml"
    if task.adaptation.pause:
        policy = "hasty.toml"
    start = time.perf_counter()
    with ExitStack() as stack:
        address = stack.enter_context(served(task.bundle, task.folder, task.folder / policy))
        clients = [
            stack.enter_context(Client(address, token=secrets[number]))
            for number in range(task.adaptation.identities)
        ]
        asker = Asker(clients, bundle, task.adaptation, pool)
        oracle = Followed(asker, len(x), task.queries)
        forged = attacks(task.queries)[task.attack](oracle, x, y, seed=0)
        plain = stack.enter_context(served(task.bundle, task.folder, task.folder / "plain.toml"))
        judge = stack.enter_context(Client(plain, token=secrets[0]))
        replies = Asker([judge], bundle, Adaptation(), pool)(forged)
    near = (forged - x).abs().flatten(1).amax(dim=1) <= RADIUS + 1 / 255
    fools = ~replies.refused & (replies.scores.argmax(dim=1) != y) & near
    first = oracle.first[oracle.first >= 0].double()
    found = {
        "images": len(x),
        "queries": int(oracle.queries.sum()),
        "budget": task.queries,
        "success_rate": float(fools.double().mean()),
        "refused_share": float(oracle.refusals.sum() / oracle.queries.sum()),
        "noticed_share": float((oracle.first >= 0).double().mean()),
        "median_queries_to_notice": float(first.median()) if len(first) else None,
        "refused_by_monitors_share": oracle.against / int(oracle.queries.sum()),
        "seconds": time.perf_counter() - start,
    }
    say(f"{task.name}, {task.attack}: {found}")
    return found


def stream(bundle: Path, folder: Path, images: np.ndarray, count: int) -> dict[str, Any]:
    """False alarms on clean requests of clients who do what clients do."""
    spec = opened(bundle).manifest.input
    secrets = json.loads((folder / "secrets.json").read_text())
    kinds: dict[str, list[int]] = {}
    by_guard = 0
    with ExitStack() as stack:
        address = stack.enter_context(served(bundle, folder, folder / "monitors.toml"))
        clients = [stack.enter_context(Client(address, token=one)) for one in secrets]
        names: dict[str, int] = {}
        rng = np.random.default_rng(99)
        for request in benign(images, count, Habits(clients=CLIENTS // 4), rng):
            who = clients[names.setdefault(request.client, len(names)) % len(clients)]
            [answer] = who.predict(to_wire(request.pixels[None], spec))
            alarm = any(name in answer.reasons for name, _ in SECTIONS)
            by_guard += answer.verdict is Verdict.REJECT and not alarm
            row = kinds.setdefault(request.kind, [0, 0])
            row[0] += 1
            row[1] += alarm
    alarms = sum(row[1] for row in kinds.values())
    return {
        "requests": count,
        "clients": len(names),
        "alarms": alarms,
        "rate": alarms / count,
        "by_kind": {kind: {"requests": a, "alarms": b} for kind, (a, b) in kinds.items()},
        "refused_by_guard_alone": by_guard / count,
    }


def sections(bundle: Bundle, images: np.ndarray, rate: float, count: int) -> list[dict[str, Any]]:
    """Calibrated monitors, as the policy has them."""
    guard = load_guard(bundle, Policy(mode="off"), threads=1)
    spec = bundle.manifest.input

    def look(some: np.ndarray) -> Any:
        sent = to_wire(some, spec)
        answer = guard.screen(sent, [guard.plan("")] * len(sent))
        return pixels(sent, spec), log_softmax(answer.outputs)

    found = []
    for name, config in SECTIONS:
        one = calibrate(
            MonitorRegistry.discover(), "query-similarity", config, images, look,
            rate=rate / len(SECTIONS), count=count, habits=Habits(clients=CLIENTS // 4),
        )  # fmt: skip
        say(f"{name}: {one}")
        found.append(
            {"name": name, "plugin": "query-similarity"}
            | {"threshold": one.threshold, "config": one.config}
        )
    return found


def toml(monitors: list[dict[str, Any]], seconds: float | None = None) -> str:
    """A policy file."""
    lines = ["false_positive_rate = 0.01"]
    for one in monitors:
        config = one["config"] | ({} if seconds is None else {"seconds": seconds})
        inside = ", ".join(f"{key} = {json.dumps(value)}" for key, value in config.items())
        lines += [
            "[[monitors]]", f'name = "{one["name"]}"', f'plugin = "{one["plugin"]}"',
            f"threshold = {one['threshold']}", f"config = {{ {inside} }}",
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


def attacked(bundle: Bundle, x: np.ndarray, y: np.ndarray, count: int) -> tuple[Tensor, Tensor]:
    """The first images that the firewall accepts and answers rightly."""
    guard = load_guard(bundle, Policy(), threads=1)
    answer = guard.screen(to_wire(x, bundle.manifest.input), [guard.plan("")] * len(x))
    good = [
        row
        for row, decision in enumerate(answer.decisions)
        if decision.verdict is Verdict.ACCEPT and answer.outputs[row].argmax() == y[row]
    ][:count]
    return torch.from_numpy(x[good].transpose(0, 3, 1, 2) / np.float32(255)), torch.from_numpy(
        y[good]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--bare-queries", type=int, default=3_000, help="without monitors")
    parser.add_argument("--adaptive-queries", type=int, default=1_000)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    measured_in = environment(("onnxruntime-gpu", "grpcio", "numpy", "torch"))
    bundle = opened(arguments.bundle)
    x, y = data(arguments.data)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        drawn = [Tokens.entry(f"client-{number}") for number in range(CLIENTS)]
        (folder / "secrets.json").write_text(json.dumps([secret for secret, _ in drawn]))
        lines = "\n".join(line for _, line in drawn)
        (folder / "tokens.toml").write_text(f"[clients]\n{lines}\n")
        monitors = sections(bundle, x[CALIBRATION:], 0.001, arguments.requests)
        (folder / "plain.toml").write_text(toml([]))
        (folder / "monitors.toml").write_text(toml(monitors))
        (folder / "hasty.toml").write_text(toml(monitors, REMEMBERED))
        images, labels = attacked(bundle, x[:1000], y[:1000], arguments.images)
        pool = torch.from_numpy(x[STREAM:CALIBRATION].transpose(0, 3, 1, 2) / np.float32(255))
        np.savez(folder / "attacked.npz", x=images, y=labels, pool=pool)
        plain = tasks(arguments, folder)
        with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool_of:
            alarms = pool_of.submit(
                stream, arguments.bundle, folder, x[STREAM:CALIBRATION], arguments.requests
            )
            done = list(pool_of.map(run, plain))
            clean = alarms.result()
    result = {
        "environment": measured_in,
        "bundle": {"name": bundle.manifest.name, "digest": bundle.digest},
        "radius": RADIUS,
        "monitors": monitors,
        "benign": clean,
        "attacks": [
            {"variant": task.name, "attack": task.attack, "monitors": task.monitors}
            | {"adaptation": asdict(task.adaptation)}
            | found
            for task, found in zip(plain, done, strict=True)
        ],
        "waiting": {"remembered_seconds": REMEMBERED, "pause_seconds": PAUSE},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out, result)


def tasks(arguments: argparse.Namespace, folder: Path) -> list[Task]:
    """Every attack, the longest first."""

    def task(
        name: str, attack: str, queries: int, monitors: bool = True, **adaptation: Any
    ) -> Task:
        return Task(
            arguments.bundle, folder, name, attack, monitors, queries, Adaptation(**adaptation)
        )

    kinds = ("Square", "NES", "HopSkipJump")
    fewer = arguments.adaptive_queries
    variants: dict[str, dict[str, Any]] = {
        "noise on every question": {"noise": 0.05},
        "blended with other images": {"blend": 0.2},
        "spread over identities": {"identities": IDENTITIES},
    }
    return [
        *(task("plain", kind, arguments.queries) for kind in kinds),
        *(task("without monitors", kind, arguments.bare_queries, monitors=False) for kind in kinds),
        *(
            task(name, kind, fewer, **adaptation)
            for name, adaptation in variants.items()
            for kind in kinds
        ),
        task("waiting", "Square", min(fewer, 500), pause=PAUSE),
    ]


if __name__ == "__main__":
    main()
