"""Guarded against bare: other projects' servers, the limit of the stack, and ours, in one run.

    python -m benchmarks.serving [--seconds 4] [--rounds 2] [--work FOLDER]

*Small job*: the small classifier of `benchmarks.small`, 3 KB tensors. MLServer, KServe's Python
server, Triton (through PyTriton) and LitServe, each in an environment of its own and over its own
protocol; gRPC with onnxruntime and nothing else; a raw echo; ours with the guard off, the cheap
tier, all guards, and all guards in front of MLServer. *Image job*: EfficientNet-Lite0, 600 KB
tensors and JPEG bytes.

A server has one core and the generator the other; one client, 8 and 32, each asking again when it
is answered, then requests at a rate that ours can answer. Every server is started anew in
every round; figures are medians over rounds. In one process besides: a guarded clean request beside
the bare one, in turn. Writes `benchmarks/results/serving/`: result.json and serving.png.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import environment
from benchmarks.image_latency import in_process
from benchmarks.load import Answered, Target, closed, closed_http, generators, opened, summary
from benchmarks.running import over_grpc, over_http, running
from benchmarks.small import CLASSES, SHAPE, small_bundle, small_classifier
from firewall.bundle.signing import Signer
from firewall.screening.preprocess import to_wire
from firewall.train import default_recipe as recipe
from firewall.train.default_bundle import build_default
from firewall.train.photographs import crops, split, wheel_photographs
from firewall.train.steps import write_json
from firewall.wire import firewall_pb2 as native
from firewall.wire import open_inference_pb2 as oip
from tests.support.peers import PREPARED, Prepared, free_ports
from tests.support.peers import environment as peer_environment

ROOT = Path(__file__).resolve().parents[1]
OUT = Path(__file__).parent / "results" / "serving"
INFER = "/inference.GRPCInferenceService/ModelInfer"
PREDICT = "/firewall.v1.FirewallService/Predict"
SMALL_CLIENTS, IMAGE_CLIENTS = (1, 8, 32), (1, 8)
#: Requests a second of the open loop. Some of the others cannot keep up.
SMALL_RATE, IMAGE_RATE = 300.0, 20.0
#: Guarded answers: a guard refuses a share of clean requests, and has answered them.
ANSWERED = {"OK", "PERMISSION_DENIED"}


@dataclass(frozen=True)
class Server:
    """What is measured.

    Attributes:
        name: in the table.
        command: and where it runs, with a port.
        requests: in turn.
        method: of gRPC; a path of HTTP begins with one slash alone and has no dot.
        beside: another server that it needs.

    """

    name: str
    prepare: Callable[[Path], Prepared]
    requests: Sequence[bytes]
    method: str = INFER
    beside: Server | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def http(self) -> bool:
        return "." not in self.method


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def tensor_request(model: str, name: str, image: np.ndarray) -> bytes:
    request = oip.ModelInferRequest(model_name=model)
    request.inputs.add(name=name, datatype="FP32", shape=image.shape)
    request.raw_input_contents.append(image.tobytes())
    return request.SerializeToString()


def json_request(image: np.ndarray) -> bytes:
    text = base64.b64encode(image.tobytes()).decode()
    return json.dumps({"image": text, "shape": image.shape}).encode()


def jpeg_request(pixels: np.ndarray) -> bytes:
    import io

    from PIL import Image

    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "JPEG", quality=95)
    images = native.Images(encoded=[held.getvalue()])
    return native.PredictRequest(input=native.Input(images=images)).SerializeToString()


def script(*arguments: str) -> Callable[[Path], Prepared]:
    """One of `benchmarks/servers`, with a port of its own at its end."""

    def prepare(folder: Path) -> Prepared:
        [port] = free_ports(1)
        command = [sys.executable, "-m", *arguments]
        if arguments[0].endswith("echo"):
            command = [*command[:-1], str(port), command[-1]]
        else:
            command.append(str(port))
        return Prepared(command, ROOT, port)

    return prepare


def lit(net: Path) -> Callable[[Path], Prepared]:
    def prepare(folder: Path) -> Prepared:
        python = peer_environment("litserve", "litserve==0.2.19", "onnxruntime==1.32.0")
        [port] = free_ports(1)
        own = ROOT / "benchmarks" / "servers" / "lit.py"
        return Prepared([str(python), str(own), str(net), str(port)], folder, port)

    return prepare


def firewall(bundle: Path, key: Path, *options: str) -> Callable[[Path], Prepared]:
    def prepare(folder: Path) -> Prepared:
        port, http = free_ports(2)
        command = [
            sys.executable, "-m", "firewall", "serve", str(bundle), "--trust", str(key),
            "--host", "127.0.0.1", "--port", str(port), "--http-port", str(http),
            "--threads", "1", "--audit-log", str(folder / "audit.jsonl"), *options,
        ]  # fmt: skip
        return Prepared(command, ROOT, port)

    return prepare


def measure(
    server: Server,
    folder: Path,
    pool: Executor,
    clients: Sequence[int],
    rate: float,
    seconds: float,
    core: int,
) -> dict[str, Any]:
    """One start of one server."""
    with ExitStack() as stack:
        environments = dict(server.environment)
        if server.beside is not None:
            other = server.beside
            place = folder / "beside"
            place.mkdir()
            ready = other.prepare(place)
            stack.enter_context(started(other, ready, place, core))
            environments["UPSTREAM"] = f"127.0.0.1:{ready.port}"
        prepared = server.prepare(folder)
        if server.beside is not None:
            url = f"grpc://{environments['UPSTREAM']}/peer"
            prepared = Prepared([*prepared.command, "--upstream", url], ROOT, prepared.port)
        live = stack.enter_context(started(server, prepared, folder, core))

        def run(count: int, lasts: float) -> Answered:
            if server.http:
                place = ("127.0.0.1", prepared.port)
                found: Answered = pool.submit(
                    closed_http, place, server.method, server.requests, count, lasts
                ).result()
            else:
                target = Target(f"127.0.0.1:{prepared.port}", server.method, server.requests)
                found = pool.submit(closed, target, count, lasts).result()
            if not set(found.statuses) <= ANSWERED:
                raise SystemExit(f"{server.name}: answered {set(found.statuses)}")
            return found

        run(max(clients), 1.0)
        # Again: threads that came with the load.
        live.pin(core)
        figures: dict[str, Any] = {"start_seconds": live.start_seconds}
        for count in clients:
            before = live.cpu_seconds()
            found = run(count, seconds)
            used = live.cpu_seconds() - before
            figures[f"{count}"] = summary(found.seconds) | {
                "per_second": len(found.seconds) / seconds,
                "cpu_seconds_per_1000": 1000 * used / len(found.seconds),
                "refused": found.statuses.count("PERMISSION_DENIED"),
            }
        if not server.http:
            target = Target(f"127.0.0.1:{prepared.port}", server.method, server.requests)
            found = pool.submit(opened, target, rate, seconds).result()
            figures["open"] = summary(found.seconds) | {"rate": rate, "late": found.late}
        figures["memory_mib"] = live.memory_mib()
    return figures


def started(server: Server, prepared: Prepared, folder: Path, core: int) -> Any:
    if server.http:
        url = f"http://127.0.0.1:{prepared.port}{server.method}"
        answers = over_http(url, server.requests[0])
    else:
        answers = over_grpc(f"127.0.0.1:{prepared.port}", server.method, server.requests[0])
    return running(
        prepared.command, answers, core=core, folder=folder,
        environment={"PYTHONPATH": str(ROOT)} if prepared.folder == ROOT else None,
    )  # fmt: skip


def medians(found: Sequence[Any]) -> Any:
    """Of figures that look alike."""
    if isinstance(found[0], dict):
        return {key: medians([one[key] for one in found]) for key in found[0]}
    return float(np.median(found))


def calibrated_remotely(small: Any, net: Path, folder: Path, core: int) -> tuple[Path, Path]:
    """A guard for MLServer's classifier, which it asks; and the key that signed it."""
    import subprocess

    from firewall.bundle.signing import user_signer

    place = folder / "calibrating"
    place.mkdir()
    peer = Server("", PREPARED["mlserver"](net, SHAPE, CLASSES), [_first(small)])
    ready = peer.prepare(place)
    np.savez(folder / "clean.npz", x=small.clean[:2000])
    with started(peer, ready, place, core):
        subprocess.run(
            [sys.executable, "-m", "firewall", "calibrate", str(folder / "clean.npz"),
             "--upstream", f"grpc://127.0.0.1:{ready.port}/peer", "--out", str(folder / "remote")],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    key = folder / "user.pub"
    key.write_text(user_signer().public)
    return folder / "remote", key


def _first(small: Any) -> bytes:
    return tensor_request("peer", "image", small.clean[0][None])


def small_servers(folder: Path, core: int) -> list[Server]:
    small = small_classifier(folder)
    net = folder / "net.onnx"
    net.write_bytes(small.onnx)
    signer = Signer.generate()
    key = folder / "signer.pub"
    key.write_text(signer.public)
    bundle = small_bundle(small, folder / "bundle", signer)
    cheap = folder / "cheap.toml"
    cheap.write_text("paranoia = 1\n")
    remote, remote_key = calibrated_remotely(small, net, folder, core)
    images = [one[None] for one in small.clean[3000:3256]]
    peers = [tensor_request("peer", "image", one) for one in images]
    ours = [tensor_request("small", "image", one) for one in images]
    mlserver = Server("MLServer", PREPARED["mlserver"](net, SHAPE, CLASSES), peers)
    return [
        Server("raw echo, threads", script("benchmarks.servers.echo", "threads", "4"), peers),
        Server("raw echo, asyncio", script("benchmarks.servers.echo", "asyncio", "1"), peers),
        Server("gRPC and onnxruntime", script("benchmarks.servers.plain", str(net)), peers),
        mlserver,
        Server("KServe", PREPARED["kserve"](net, SHAPE, CLASSES), peers),
        Server("Triton (PyTriton)", PREPARED["triton"](net, SHAPE, CLASSES), peers),
        Server("LitServe", lit(net), [json_request(one) for one in images], "/predict"),
        Server("firewall, off", firewall(bundle, key, "--mode", "off"), ours),
        Server("firewall, cheap tier", firewall(bundle, key, "--policy", str(cheap)), ours),
        Server("firewall, all guards", firewall(bundle, key), ours),
        Server(
            "firewall, all guards, before MLServer", firewall(remote, remote_key), peers,
            beside=mlserver,
        ),
    ]  # fmt: skip


def image_servers(folder: Path, net: Path) -> list[Server]:
    signer = Signer.generate()
    key = folder / "image.pub"
    key.write_text(signer.public)
    bundle = folder / "image-bundle"
    build_default(bundle, signer, say)
    cheap = folder / "image-cheap.toml"
    cheap.write_text("paranoia = 1\n")
    pixels, _ = crops(split(wheel_photographs())["held-out"], 8, recipe.SIDE, recipe.SEED + 200)
    tensors = [one[None] for one in to_wire(pixels, recipe.INPUT)]
    ours = [tensor_request(recipe.NAME, recipe.INPUT.name, one) for one in tensors]
    jpeg = [jpeg_request(one) for one in pixels]
    return [
        Server("gRPC and onnxruntime", script("benchmarks.servers.plain", str(net)), ours),
        Server("firewall, off", firewall(bundle, key, "--mode", "off"), ours),
        Server("firewall, cheap tier", firewall(bundle, key, "--policy", str(cheap)), ours),
        Server("firewall, all guards", firewall(bundle, key), ours),
        Server("firewall, all guards, JPEG", firewall(bundle, key), jpeg, PREDICT),
    ]


def bare_memory(net: Path, folder: Path, core: int) -> float:
    """Of a process that has onnxruntime, numpy and the classifier, and has run it."""
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


def draw(result: dict[str, Any], path: Path) -> None:
    """Requests a second at 32 clients, ours in another colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = sorted(result["small"].items(), key=lambda item: item[1]["32"]["per_second"])
    names = [name for name, _ in rows]
    figure, axes = pyplot.subplots(figsize=(8, 4.2), layout="constrained")
    colours = ["#2a6f97" if name.startswith("firewall") else "#b0b7bd" for name in names]
    axes.barh(names, [one["32"]["per_second"] for _, one in rows], color=colours)
    axes.set_xlabel("requests a second, 32 clients, one core for the server")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def ratios(result: dict[str, Any]) -> dict[str, float]:
    small = result["small"]
    peers = ("MLServer", "KServe", "Triton (PyTriton)", "LitServe")

    def rate(name: str) -> float:
        return float(small[name]["32"]["per_second"])

    guarded = rate("firewall, all guards")
    peers = tuple(name for name in peers if name in small)
    image = result["image"]
    one = next(one for one in result["in_process"] if one["threads"] == 1)
    return {
        "small_guarded_over_best_bare_peer": guarded / max(map(rate, peers)),
        "small_guarded_over_echo": guarded
        / max(rate("raw echo, threads"), rate("raw echo, asyncio")),
        "image_guarded_over_bare_p50": one["tensor"]["ratio"]["p50"],
        "jpeg_guarded_over_bare_p50": one["jpeg"]["ratio"]["p50"],
        "memory_over_bare": image["firewall, all guards"]["memory_mib"] / result["bare_memory_mib"],
        "start_seconds": image["firewall, all guards"]["start_seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="+", help="names of servers; writes nothing")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    measured_in = environment(("onnxruntime-gpu", "grpcio", "numpy", "protobuf"))
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("two cores are needed: one for the server, one for the clients")
    found: dict[str, dict[str, list[Any]]] = {"small": {}, "image": {}}
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        os.environ["FIREWALL_CONFIG_DIR"] = str(folder / "config")
        latencies, image_net = in_process(folder)
        jobs = {
            "small": (small_servers(folder, cores[0]), SMALL_CLIENTS, SMALL_RATE),
            "image": (image_servers(folder, image_net), IMAGE_CLIENTS, IMAGE_RATE),
        }
        pool = stack.enter_context(generators(1, set(cores[1:])))
        for number in range(arguments.rounds):
            for job, (servers, clients, rate) in jobs.items():
                for server in servers:
                    if arguments.only and server.name not in arguments.only:
                        continue
                    place = folder / f"{job}-{number}-{len(found[job])}-{server.name[:8]}"
                    place.mkdir()
                    try:
                        one = measure(
                            server, place, pool, clients, rate, arguments.seconds, cores[0]
                        )
                    except SystemExit as error:
                        if server.name.startswith("firewall"):
                            raise
                        # Another project's, which does not start here.
                        say(f"{job}, {server.name}: {error}")
                        left_out[server.name] = str(error).splitlines()[0][:200]
                        continue
                    found[job].setdefault(server.name, []).append(one)
                    most = one[f"{max(clients)}"]
                    say(f"{job}, {server.name}: {most['per_second']:.0f}/s, "
                        f"{most['cpu_seconds_per_1000']:.3f} s per 1000")  # fmt: skip
        if arguments.only:
            return
        bare = bare_memory(image_net, folder, cores[0])
    result: dict[str, Any] = {
        "environment": measured_in,
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
        **{job: {name: medians(one) for name, one in rows.items()} for job, rows in found.items()},
        "in_process": latencies,
        "bare_memory_mib": bare,
        "left_out": sorted(left_out),
    }
    result["ratios"] = ratios(result)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "result.json", result)
    draw(result, arguments.out / "serving.png")
    print(json.dumps(result["ratios"]))


if __name__ == "__main__":
    main()
