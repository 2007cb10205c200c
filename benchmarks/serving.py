"""Guarded against bare: other projects' servers, the limit of the stack, and ours, in one run.

    python -m benchmarks.serving [--seconds 4] [--rounds 2] [--turns 9] [--work FOLDER]

*small*: the small classifier of `benchmarks.small`, tensors of 3 KB. MLServer, KServe's Python
server, Triton (through PyTriton) and LitServe, each in an environment of its own, over gRPC and
over REST (binary tensors where a server has them); gRPC with onnxruntime and nothing else; a raw
echo; ours with the guard off, the cheap tier, and all guards, over gRPC and REST, and in front of
MLServer. *image*: EfficientNet-Lite0, tensors of 600 KB and JPEG files. *health*: probes, every
20 ms or every 100 ms, while eight clients send photographs.

A server has one core and the generator the other; one client, 8 and 32, each sending again when it
is answered, then requests at a steady rate. Every server is started anew in every round; figures
are medians over rounds. A machine's speed drifts, so the ratios that matter are paired: both
servers run on the same core at once, are loaded in alternating short turns, and the median of the
ratios of neighbouring turns counts. In one process besides: a guarded clean request beside the bare
one, in turn. Writes `benchmarks/results/serving/`: result.json and serving.png.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks.contenders import (
    GRPC_PEERS,
    OURS,
    OURS_REST,
    PLAIN,
    REST_PEERS,
    Server,
    image_servers,
    prepare_small,
    started,
)
from benchmarks.environment import environment
from benchmarks.health import health
from benchmarks.image_latency import in_process
from benchmarks.load import (
    Answered,
    Target,
    closed,
    generators,
    opened,
    summary,
)
from benchmarks.running import NotStarted, running
from firewall.train.steps import write_json

Result = TypeVar("Result")
OUT = Path(__file__).parent / "results" / "serving"
PARTS = ("small", "image", "health")
CLIENTS = {"small": (1, 8, 32), "image": (1, 8)}
#: Requests a second of the open loop. Some servers cannot keep up.
RATES = {"small": 300.0, "image": 20.0}
#: Statuses of an answer: a guard refuses a share of clean requests.
ANSWERED = {"OK", "PERMISSION_DENIED"}


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def load(name: str, pool: Executor, target: Target, clients: int, seconds: float) -> Answered:
    """Run a closed loop, and stop the benchmark when anything but an answer comes."""
    answered: Answered = pool.submit(closed, target, clients, seconds).result()
    if not set(answered.statuses) <= ANSWERED:
        raise SystemExit(f"{name}: answered {set(answered.statuses)}")
    return answered


def twice(folder: Path, action: Callable[[Path], Result]) -> Result:
    """Try again when a server does not start: a port that was free may have been taken since."""
    folder.mkdir()
    try:
        first = folder / "first"
        first.mkdir()
        return action(first)
    except NotStarted as error:
        say(f"tried once more: {error}")
    again = folder / "again"
    again.mkdir()
    return action(again)


def measure(
    server: Server, job: str, folder: Path, pool: Executor, seconds: float, core: int
) -> dict[str, Any]:
    """Start a server once and take all of its figures."""
    with started(server, folder, core) as (live, target):
        load(server.name, pool, target, max(CLIENTS[job]), 1.0)
        # Again: threads that came with the load.
        live.pin(core)
        figures: dict[str, Any] = {"start_seconds": live.start_seconds}
        for count in CLIENTS[job]:
            before = live.cpu_seconds()
            answered = load(server.name, pool, target, count, seconds)
            used = live.cpu_seconds() - before
            figures[f"{count}"] = summary(answered.seconds) | {
                "per_second": len(answered.seconds) / seconds,
                "cpu_seconds_per_1000": 1000 * used / len(answered.seconds),
                "refused": answered.statuses.count("PERMISSION_DENIED"),
            }
        answered = pool.submit(opened, target, RATES[job], seconds).result()
        figures["open"] = summary(answered.seconds) | {"rate": RATES[job], "late": answered.late}
        figures["memory_mib"] = live.memory_mib()
    return figures


def rounds(
    job: str,
    servers: Sequence[Server],
    arguments: argparse.Namespace,
    folder: Path,
    pool: Executor,
    core: int,
) -> tuple[dict[str, Any], set[str]]:
    """Medians of each server's figures, and the names of those that do not start here."""
    figures: dict[str, list[Any]] = {}
    left_out: set[str] = set()
    for number in range(arguments.rounds):
        for position, server in enumerate(servers):
            if server.name in left_out:
                continue
            try:
                one = twice(
                    folder / f"{job}-{number}-{position}",
                    lambda place, server=server: measure(  # type: ignore[misc]
                        server, job, place, pool, arguments.seconds, core
                    ),
                )
            except SystemExit as error:
                if server.name.startswith("firewall"):
                    raise
                say(f"{job}, {server.name}: left out: {error}")
                left_out.add(server.name)
                continue
            figures.setdefault(server.name, []).append(one)
            largest = one[f"{max(CLIENTS[job])}"]
            say(
                f"{job}, {server.name}: {largest['per_second']:.0f}/s, "
                f"{largest['cpu_seconds_per_1000']:.3f} s per 1000"
            )
    return {name: medians(one) for name, one in figures.items()}, left_out


def paired(
    first: Server,
    second: Server,
    folder: Path,
    pool: Executor,
    turns: int,
    seconds: float,
    core: int,
) -> dict[str, Any]:
    """Requests a second of the first server over the second's, in alternating turns."""
    clients = max(CLIENTS["small"])
    with ExitStack() as stack:
        targets = []
        for position, server in enumerate((first, second)):
            place = folder / f"{position}"
            place.mkdir()
            live, target = stack.enter_context(started(server, place, core))
            load(server.name, pool, target, clients, 1.0)
            live.pin(core)
            targets.append((server.name, target))
        ratios = []
        for turn in range(turns):
            # Which of the two goes first alternates.
            order = targets if turn % 2 == 0 else targets[::-1]
            rates = {
                name: len(load(name, pool, target, clients, seconds).seconds) / seconds
                for name, target in order
            }
            ratios.append(rates[first.name] / rates[second.name])
    say(f"{first.name} ÷ {second.name}: {np.median(ratios):.2f} of {sorted(ratios)}")
    return {"over": second.name, "turns": ratios}


def pairs(
    servers: Sequence[Server],
    figures: dict[str, Any],
    arguments: argparse.Namespace,
    folder: Path,
    pool: Executor,
    core: int,
) -> dict[str, Any]:
    """Paired turns against the plain server, and against the fastest peer of each protocol."""
    by_name = {server.name: server for server in servers}

    def fastest(names: Sequence[str]) -> str:
        return max(
            (name for name in names if name in figures),
            key=lambda name: figures[name]["32"]["per_second"],
            default="",
        )

    wanted = {
        "small_guarded_over_plain": (OURS, PLAIN),
        "small_guarded_over_best_bare_peer": (OURS, fastest(GRPC_PEERS)),
        "rest_guarded_over_best_bare_peer_rest": (OURS_REST, fastest(REST_PEERS)),
    }
    found = {}
    for ratio, (ours, other) in wanted.items():
        if ours in figures and other in figures:
            found[ratio] = twice(
                folder / ratio,
                lambda place, ours=ours, other=other: paired(  # type: ignore[misc]
                    by_name[ours], by_name[other], place, pool, arguments.turns,
                    min(arguments.seconds, 2.0), core,
                ),
            )  # fmt: skip
    return found


def medians(figures: Sequence[Any]) -> Any:
    """Median of each figure over dictionaries of the same shape."""
    if isinstance(figures[0], dict):
        return {key: medians([one[key] for one in figures]) for key in figures[0]}
    return float(np.median(figures))


def bare_memory(net: Path, folder: Path, core: int) -> float:
    """MiB of a process that has onnxruntime, numpy and the classifier, and has run it."""
    done = folder / "ran"
    code = (
        "import sys, time, numpy as np, onnxruntime as ort, pathlib\n"
        "options = ort.SessionOptions(); options.intra_op_num_threads = 1\n"
        "s = ort.InferenceSession(sys.argv[1], options, providers=['CPUExecutionProvider'])\n"
        "one = s.get_inputs()[0]\n"
        "x = np.zeros([1, *one.shape[1:]], np.float32)\n"
        "for _ in range(50): s.run(None, {one.name: x})\n"
        "pathlib.Path(sys.argv[2]).touch(); time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, str(net), str(done)]
    with running(command, done.exists, core=core, folder=folder) as live:
        return live.memory_mib()


def draw(small: dict[str, Any], path: Path) -> None:
    """Requests a second at 32 clients, ours in another colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = sorted(small.items(), key=lambda item: item[1]["32"]["per_second"])
    names = [name for name, _ in rows]
    figure, axes = pyplot.subplots(figsize=(8, 5.2), layout="constrained")
    colours = ["#2a6f97" if name.startswith("firewall") else "#b0b7bd" for name in names]
    axes.barh(names, [one["32"]["per_second"] for _, one in rows], color=colours)
    axes.set_xlabel("requests a second, 32 clients, one core for the server")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def ratios(result: dict[str, Any]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The figures with an aim, and the lowest and highest turn of those that are paired."""
    values: dict[str, float] = {}
    ranges: dict[str, list[float]] = {}
    for name, pair in result.get("pairs", {}).items():
        values[name] = float(np.median(pair["turns"]))
        ranges[name] = [min(pair["turns"]), max(pair["turns"])]
    if "image" in result:
        alone = next(one for one in result["in_process"] if one["threads"] == 1)
        values["image_guarded_p50_over_bare"] = alone["tensor"]["ratio"]["p50"]
        values["jpeg_guarded_p50_over_bare"] = alone["jpeg"]["ratio"]["p50"]
        if ours := result["image"].get(OURS):
            values["memory_over_bare"] = ours["memory_mib"] / result["bare_memory_mib"]
            values["start_seconds"] = ours["start_seconds"]
    if "health" in result:
        values["health_p99_ms"] = max(
            probe["loaded"]["p99_ms"] for probe in result["health"]["probes"].values()
        )
    return values, ranges


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each closed and open loop")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--turns", type=int, default=9, help="of each server of a pair")
    parser.add_argument("--requests", type=int, default=300, help="in one process, of each kind")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--only", nargs="+", help="names of servers")
    parser.add_argument("--work", type=Path, help="folder for bundles and logs, kept")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    whole = arguments.only is None and set(arguments.parts) == set(PARTS)
    if not whole and arguments.out == OUT:
        raise SystemExit("--parts and --only leave figures out: name another folder with --out")
    measured_in = environment(("onnxruntime-gpu", "grpcio", "uvicorn", "numpy", "protobuf"))
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("two cores are needed: one for the server, one for the clients")
    core = cores[0]
    result: dict[str, Any] = {
        "environment": measured_in,
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
    }
    left_out: set[str] = set()

    def chosen(servers: Sequence[Server]) -> list[Server]:
        return [one for one in servers if not arguments.only or one.name in arguments.only]

    with ExitStack() as stack:
        if arguments.work:
            arguments.work.mkdir(parents=True)
        folder = (
            arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ).absolute()
        os.environ["FIREWALL_CONFIG_DIR"] = str(folder / "config")
        pool = stack.enter_context(generators(3, set(cores[1:])))
        if "small" in arguments.parts:
            servers = chosen(prepare_small(folder, core))
            figures, missing = rounds("small", servers, arguments, folder, pool, core)
            left_out |= missing
            result["small"] = figures
            result["pairs"] = pairs(servers, figures, arguments, folder, pool, core)
        if "image" in arguments.parts:
            result["in_process"], net = in_process(folder, arguments.requests)
            servers = chosen(image_servers(folder, net))
            result["image"], missing = rounds("image", servers, arguments, folder, pool, core)
            left_out |= missing
            result["bare_memory_mib"] = bare_memory(net, folder, core)
        if "health" in arguments.parts:
            result["health"] = health(folder, core, pool, 5 * arguments.seconds)
    result["left_out"] = sorted(left_out)
    result["ratios"], result["ranges"] = ratios(result)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "result.json", result)
    if "small" in result:
        draw(result["small"], arguments.out / "serving.png")
    print(json.dumps(result["ratios"]))


if __name__ == "__main__":
    main()
