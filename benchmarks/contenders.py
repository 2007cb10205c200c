"""The servers that are compared: those of other projects, the limits of the stack, and ours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.load import GrpcTarget, HttpTarget, Target
from benchmarks.requests import (
    INFER,
    PREDICT,
    grpc_image,
    grpc_tensor,
    jpeg,
    lit_json,
    rest_image,
    rest_json,
    rest_tensor,
)
from benchmarks.running import Running, over_grpc, over_http, running
from benchmarks.small import CLASSES, SHAPE, Small, small_bundle, small_classifier
from firewall.bundle.signing import Signer, user_signer
from firewall.screening.preprocess import to_wire
from firewall.train import default_recipe as recipe
from firewall.train.default_bundle import build_default
from firewall.train.photographs import crops, wheel_photographs
from tests.support.peers import PREPARED, Prepare, Prepared, free_ports
from tests.support.peers import environment as peer_environment

ROOT = Path(__file__).resolve().parents[1]
#: Images that requests are made of, and those that a guard is calibrated on.
SENT, CALIBRATED = slice(3000, 3256), slice(0, 2000)
PLAIN = "gRPC and onnxruntime"
OURS, OURS_REST = "firewall, all guards", "firewall, all guards, REST"
#: Other projects' servers, by the protocol of the requests; LitServe has one of its own over HTTP.
GRPC_PEERS = ("MLServer", "KServe", "Triton (PyTriton)", "LitServe")
REST_PEERS = ("MLServer, REST", "KServe, REST", "Triton (PyTriton), REST", "LitServe")
_PEER_NAMES = {"MLServer": "mlserver", "KServe": "kserve", "Triton (PyTriton)": "triton"}


@dataclass(frozen=True)
class Server:
    """A server, and what it is asked.

    Attributes:
        name: in tables.
        prepare: a command with ports of its own.
        requests: messages of gRPC, or whole HTTP requests; sent in turn.
        protocol: of the requests.
        method: of gRPC.
        upstream: the server that holds its classifier, asked over that server's protocol.

    """

    name: str
    prepare: Prepare
    requests: Sequence[bytes]
    protocol: Literal["grpc", "rest"] = "grpc"
    method: str = INFER
    upstream: Server | None = None

    def target(self, prepared: Prepared) -> Target:
        """Where its requests go."""
        if self.protocol == "grpc":
            return GrpcTarget(f"127.0.0.1:{prepared.port}", self.method, self.requests)
        return HttpTarget(f"127.0.0.1:{prepared.http_port}", self.requests)


@contextmanager
def started(server: Server, folder: Path, core: int) -> Iterator[tuple[Running, Target]]:
    """Run a server on one core, with its upstream on the same one."""
    with ExitStack() as stack:
        prepared = server.prepare(folder)
        command = prepared.command
        if server.upstream is not None:
            upstream = server.upstream
            place = folder / "upstream"
            place.mkdir()
            other = upstream.prepare(place)
            stack.enter_context(_running(upstream, other, place, core))
            command = [*command, "--upstream", other.url(upstream.protocol)]
        prepared = Prepared(command, prepared.folder, prepared.port, prepared.http_port)
        live = stack.enter_context(_running(server, prepared, folder, core))
        yield live, server.target(prepared)


def _running(server: Server, prepared: Prepared, folder: Path, core: int) -> Any:
    target = server.target(prepared)
    if isinstance(target, HttpTarget):
        answers = over_http(target.address, server.requests[0])
    else:
        answers = over_grpc(target.address, target.method, server.requests[0])
    return running(
        prepared.command, answers, core=core, folder=folder,
        environment={"PYTHONPATH": str(ROOT)} if prepared.folder == ROOT else None,
    )  # fmt: skip


def echo(kind: str, threads: int) -> Prepare:
    """A server that computes nothing: `benchmarks/servers/echo.py`."""

    def prepare(folder: Path) -> Prepared:
        [port] = free_ports(1)
        command = [
            sys.executable, "-m", "benchmarks.servers.echo", kind, str(port), str(threads),
        ]  # fmt: skip
        return Prepared(command, ROOT, port)

    return prepare


def plain(net: Path) -> Prepare:
    """A server without a guard: `benchmarks/servers/plain.py`."""

    def prepare(folder: Path) -> Prepared:
        [port] = free_ports(1)
        command = [sys.executable, "-m", "benchmarks.servers.plain", str(net), str(port)]
        return Prepared(command, ROOT, port)

    return prepare


def lit(net: Path) -> Prepare:
    """LitServe in an environment of its own: `benchmarks/servers/lit.py`."""

    def prepare(folder: Path) -> Prepared:
        python = peer_environment("litserve", "litserve==0.2.19", "onnxruntime==1.32.0")
        [port] = free_ports(1)
        own = ROOT / "benchmarks" / "servers" / "lit.py"
        return Prepared([str(python), str(own), str(net), str(port)], folder, 0, port)

    return prepare


def firewall(bundle: Path, key: Path, *options: str) -> Prepare:
    """`firewall serve` with one inference thread.

    It queues for longer than by default: the others refuse nobody, and on a slow machine eight
    photographs take more than a second. What it refuses is measured by `benchmarks.overload`.
    """

    def prepare(folder: Path) -> Prepared:
        port, rest, operations = free_ports(3)
        command = [
            sys.executable, "-m", "firewall", "serve", str(bundle), "--trust", str(key),
            "--host", "127.0.0.1", "--grpc-port", str(port), "--rest-port", str(rest),
            "--operations-port", str(operations), "--inference-threads", "1",
            "--max-wait", "10", "--admin-socket", "off", "--audit-log", str(folder / "audit.jsonl"),
            *options,
        ]  # fmt: skip
        return Prepared(command, ROOT, port, rest)

    return prepare


def small_servers(small: Small, folder: Path, core: int) -> list[Server]:
    """A small classifier behind every server: tensors of 3 KB."""
    net = folder / "net.onnx"
    net.write_bytes(small.onnx)
    signer = Signer.generate()
    key = folder / "signer.pub"
    key.write_text(signer.public)
    bundle = small_bundle(small, folder / "bundle", signer)
    cheap = folder / "cheap.toml"
    cheap.write_text("paranoia = 1\n")
    images = [image[None] for image in small.clean[SENT]]
    messages = [grpc_tensor("peer", "image", image) for image in images]
    binary = [rest_tensor("peer", "image", image) for image in images]
    # MLServer's REST API has no binary tensors.
    text = [rest_json("peer", "image", image) for image in images]
    ours = [grpc_tensor("small", "image", image) for image in images]
    ours_rest = [rest_tensor("small", "image", image) for image in images]
    prepared = {name: PREPARED[short](net, SHAPE, CLASSES) for name, short in _PEER_NAMES.items()}
    peers = [Server(name, prepare, messages) for name, prepare in prepared.items()]
    rest_peers = [
        Server(f"{name}, REST", prepare, text if name == "MLServer" else binary, "rest")
        for name, prepare in prepared.items()
    ]
    mlserver, mlserver_rest = peers[0], rest_peers[0]
    remote, remote_key = calibrated_remotely(mlserver, small, folder, core)
    return [
        Server("raw echo, threads", echo("threads", 4), messages),
        Server("raw echo, asyncio", echo("asyncio", 1), messages),
        Server(PLAIN, plain(net), messages),
        *peers,
        *rest_peers,
        Server("LitServe", lit(net), [lit_json(image) for image in images], "rest"),
        Server("firewall, off", firewall(bundle, key, "--mode", "off"), ours),
        Server("firewall, cheap tier", firewall(bundle, key, "--policy", str(cheap)), ours),
        Server(OURS, firewall(bundle, key), ours),
        Server(OURS_REST, firewall(bundle, key), ours_rest, "rest"),
        Server(
            "firewall, all guards, before MLServer", firewall(remote, remote_key), messages,
            upstream=mlserver,
        ),
        Server(
            "firewall, all guards, before MLServer over REST", firewall(remote, remote_key),
            messages, upstream=mlserver_rest,
        ),
    ]  # fmt: skip


def calibrated_remotely(
    mlserver: Server, small: Small, folder: Path, core: int
) -> tuple[Path, Path]:
    """A guard for the classifier behind MLServer, and the key that signed it."""
    place = folder / "calibrating"
    place.mkdir()
    np.savez(folder / "clean.npz", x=small.clean[CALIBRATED])
    with started(mlserver, place, core) as (_, target):
        subprocess.run(
            [sys.executable, "-m", "firewall", "guard", f"grpc://{target.address}/peer",
             str(folder / "clean.npz"), "--preset", "zero-one", "--minutes", "0.01",
             "--out", str(folder / "remote")],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    key = folder / "user.pub"
    key.write_text(user_signer().public)
    return folder / "remote", key


def image_servers(folder: Path, net: Path) -> list[Server]:
    """EfficientNet-Lite0: tensors of 600 KB and JPEG files."""
    bundle, key = image_bundle(folder)
    cheap = folder / "image-cheap.toml"
    cheap.write_text("paranoia = 1\n")
    pixels, _ = crops(wheel_photographs(), 2, recipe.SIDE, recipe.SEED + 200)
    tensors = [tensor[None] for tensor in to_wire(pixels, recipe.INPUT)]
    messages = [grpc_tensor(recipe.NAME, recipe.INPUT.name, tensor) for tensor in tensors]
    binary = [rest_tensor(recipe.NAME, recipe.INPUT.name, tensor) for tensor in tensors]
    files = [jpeg(image) for image in pixels]
    guarded = firewall(bundle, key)
    return [
        Server(PLAIN, plain(net), messages),
        Server("firewall, off", firewall(bundle, key, "--mode", "off"), messages),
        Server("firewall, cheap tier", firewall(bundle, key, "--policy", str(cheap)), messages),
        Server(OURS, guarded, messages),
        Server(f"{OURS}, JPEG", guarded, [grpc_image(file) for file in files], method=PREDICT),
        Server(OURS_REST, guarded, binary, "rest"),
        Server(
            f"{OURS_REST}, JPEG", guarded, [rest_image(recipe.NAME, file) for file in files], "rest"
        ),
    ]


def image_bundle(folder: Path) -> tuple[Path, Path]:
    """The default bundle and the key that signed it; built once per folder."""
    bundle, key = folder / "image-bundle", folder / "image.pub"
    if not key.exists():
        signer = Signer.generate()
        build_default(bundle, signer, lambda step: print(step, file=sys.stderr, flush=True))
        key.write_text(signer.public)
    return bundle, key


def prepare_small(folder: Path, core: int) -> list[Server]:
    """Train the small classifier, and prepare the servers around it."""
    return small_servers(small_classifier(folder), folder, core)
