"""Servers of other projects, each in an environment of its own, as their users install them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

_MODEL = Path(__file__).parent / "mlserver_model" / "onnx_model.py"
_KSERVE = Path(__file__).parent / "kserve_model" / "server.py"
_PYTRITON = Path(__file__).parent / "pytriton_model" / "server.py"

#: What is installed of two of them.
MLSERVER = ("mlserver==1.7.1", "onnxruntime==1.32.0")
KSERVE = ("kserve==0.21.0", "onnxruntime==1.32.0")


def environment(name: str, *packages: str, interpreter: str = sys.executable) -> Path:
    """Its Python. Made once: kept in FIREWALL_PEERS, or in the user's cache."""
    cache = os.environ.get("FIREWALL_PEERS") or Path.home() / ".cache" / "firewall-peers"
    folder = Path(cache) / name
    done = folder / "packages.json"
    if not done.exists() or json.loads(done.read_text()) != list(packages):
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([interpreter, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages]
        subprocess.run(pip, check=True, timeout=900)
        done.write_text(json.dumps(list(packages)))
    return folder / "bin" / "python"


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


@dataclass(frozen=True)
class Prepared:
    """A server that can be started: command, folder to start it in, gRPC port and HTTP port.

    `http_port` is 0 where a server has none.
    """

    command: list[str]
    folder: Path
    port: int
    http_port: int = 0

    def url(self, protocol: str) -> str:
        """Where the model `peer` is, as `--upstream` takes it; `grpc` or `rest`."""
        if protocol == "grpc":
            return f"grpc://127.0.0.1:{self.port}/peer"
        return f"http://127.0.0.1:{self.http_port}/v2/models/peer"


#: Prepares a server in a folder of its own.
Prepare = Callable[[Path], Prepared]


def prepare_mlserver(net: Path, shape: tuple[int, int, int], classes: int) -> Prepare:
    """MLServer with an ONNX classifier named `peer`."""

    def prepare(folder: Path) -> Prepared:
        python = environment("mlserver", *MLSERVER)
        http, rpc, metrics = free_ports(3)
        home = folder / "mlserver"
        (home / "peer").mkdir(parents=True)
        shutil.copyfile(_MODEL, home / "peer" / "onnx_model.py")
        settings = {
            "host": "127.0.0.1",
            "http_port": http,
            "grpc_port": rpc,
            "metrics_port": metrics,
            "parallel_workers": 0,
        }
        (home / "settings.json").write_text(json.dumps(settings))
        model = {
            "name": "peer",
            "implementation": "onnx_model.OnnxModel",
            "parameters": {"uri": str(net)},
            "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, *shape]}],
            "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, classes]}],
        }
        (home / "peer" / "model-settings.json").write_text(json.dumps(model))
        command = [str(python.parent / "mlserver"), "start", str(home)]
        return Prepared(command, home / "peer", rpc, http)

    return prepare


def prepare_kserve(net: Path, shape: tuple[int, int, int], classes: int) -> Prepare:
    """KServe's Python server with the same."""

    def prepare(folder: Path) -> Prepared:
        python = environment("kserve", *KSERVE)
        http, rpc = free_ports(2)
        command = [
            str(python), str(_KSERVE), "--net", str(net), "--shape", *map(str, shape),
            "--classes", str(classes), "--http_port", str(http), "--grpc_port", str(rpc),
        ]  # fmt: skip
        return Prepared(command, folder, rpc, http)

    return prepare


def prepare_triton(net: Path, shape: tuple[int, int, int], classes: int) -> Prepare:
    """Triton with the same, by way of PyTriton."""

    def prepare(folder: Path) -> Prepared:
        # Its Triton has a Python of its own, which must be as old as the library that it loads.
        system = "/usr/bin/python3.11"
        python = environment(
            "pytriton", "nvidia-pytriton", "onnxruntime==1.32.0",
            interpreter=system if Path(system).exists() else sys.executable,
        )  # fmt: skip
        http, rpc, metrics = free_ports(3)
        command = [
            str(python), str(_PYTRITON), "--net", str(net), "--shape", *map(str, shape),
            "--classes", str(classes), "--ports", str(http), str(rpc), str(metrics),
        ]  # fmt: skip
        return Prepared(command, folder, rpc, http)

    return prepare


#: How to prepare each server, by name.
PREPARED: dict[str, Callable[[Path, tuple[int, int, int], int], Prepare]] = {
    "mlserver": prepare_mlserver,
    "kserve": prepare_kserve,
    "triton": prepare_triton,
}


@contextmanager
def peer(
    name: str, net: Path, folder: Path, shape: tuple[int, int, int], classes: int
) -> Iterator[str]:
    """One of them, running; yields its gRPC address."""
    with running_peer(name, net, folder, shape, classes) as found:
        yield f"127.0.0.1:{found.port}"


@contextmanager
def running_peer(
    name: str, net: Path, folder: Path, shape: tuple[int, int, int], classes: int
) -> Iterator[Prepared]:
    """One of them, running; yields its ports."""
    found = PREPARED[name](net, shape, classes)(folder)
    with _running(found.command, found.folder, found.port):
        yield found


@contextmanager
def _running(command: list[str], folder: Path, port: int) -> Iterator[str]:
    log, address = folder / "server.log", f"127.0.0.1:{port}"
    with open(log, "w") as file:
        # A session of its own: some start processes that outlive them.
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, cwd=folder, start_new_session=True
        )
    try:
        _wait(address, process, log)
        yield address
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the model `peer` is ready."""
    from firewall.wire import open_inference_pb2

    with grpc.insecure_channel(address) as channel:
        for _ in range(600):
            if process.poll() is not None:
                raise AssertionError(log.read_text())
            try:
                ready = channel.unary_unary("/inference.GRPCInferenceService/ModelReady")(
                    open_inference_pb2.ModelReadyRequest(name="peer").SerializeToString(),
                    timeout=5,
                )
                if open_inference_pb2.ModelReadyResponse.FromString(ready).ready:
                    return
            except grpc.RpcError:
                pass
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
    raise AssertionError(f"not ready: {log.read_text()} ({sys.version})")
