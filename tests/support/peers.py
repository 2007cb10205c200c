"""Servers of other projects, each in an environment of its own, as their users install them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

_MODEL = Path(__file__).parent / "mlserver_model" / "onnx_model.py"


def environment(name: str, *packages: str) -> Path:
    """Its Python. Made once: kept in FIREWALL_PEERS, or in the user's cache."""
    cache = os.environ.get("FIREWALL_PEERS") or Path.home() / ".cache" / "firewall-peers"
    folder = Path(cache) / name
    done = folder / "packages.json"
    if not done.exists() or json.loads(done.read_text()) != list(packages):
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
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


@contextmanager
def mlserver(net: Path, folder: Path, shape: tuple[int, int, int], classes: int) -> Iterator[str]:
    """MLServer with an ONNX classifier named `peer`; yields its gRPC address."""
    python = environment("mlserver", "mlserver==1.7.1", "onnxruntime==1.32.0")
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
    log = folder / "mlserver.log"
    with open(log, "w") as file:
        process = subprocess.Popen(
            [str(python.parent / "mlserver"), "start", str(home)],
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=home / "peer",
        )
    try:
        _wait(f"127.0.0.1:{rpc}", process, log)
        yield f"127.0.0.1:{rpc}"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
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
