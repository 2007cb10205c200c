"""A hundred thousand requests that are wrong, to both services of one server.

    python -m benchmarks.malformed [--requests 100000] [--seed 0]

Good requests of every method are mutated: bits flipped, bytes cut, repeated, replaced and inserted,
numbers and lengths of the wire format made huge, fields dropped, doubled and swapped between
messages, tensors of other types, shapes and sizes, images cut and forged in their headers. Each is
sent with a deadline; its status must be one that the protocol documents, and whoever sends a good
request in between must get a good answer. The server's memory is looked at after a tenth of them
and at the end.
Writes `benchmarks/results/malformed/result.json`.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from PIL import Image

from benchmarks.environment import environment
from benchmarks.running import resident_mib
from firewall.bundle.signing import Signer
from firewall.client import Client
from firewall.testing import images
from firewall.train.steps import write_json
from firewall.wire import firewall_pb2 as native
from firewall.wire import open_inference_pb2 as oip
from tests.support.served import FREE_PORTS
from tests.support.tiny import build_tiny

OUT = Path(__file__).parent / "results" / "malformed" / "result.json"
SIDE = 32
#: What a client may be told about a request; anything else is a finding.
DOCUMENTED = {
    "OK", "INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED", "UNIMPLEMENTED",
    "RESOURCE_EXHAUSTED",
}  # fmt: skip
DEADLINE, SENDERS = 20.0, 8
_NATIVE, _OIP = "/firewall.v1.FirewallService/", "/inference.GRPCInferenceService/"


def picture(kind: str, rng: random.Random) -> bytes:
    """A good image."""
    pixels = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def seeds(rng: random.Random) -> list[tuple[str, bytes]]:
    """Good requests of every method."""
    x = images(1, rng.getrandbits(16)).numpy()
    tensor = native.Tensor(datatype="FP32", shape=x.shape, data=x.tobytes())
    given = native.Input(tensor=tensor)
    files = native.Input(images=native.Images(encoded=[picture("PNG", rng), picture("JPEG", rng)]))
    infer = oip.ModelInferRequest(model_name="tiny", id="a")
    infer.inputs.add(name="image", datatype="FP32", shape=x.shape)
    infer.raw_input_contents.append(x.tobytes())
    typed = oip.ModelInferRequest(model_name="tiny")
    one = typed.inputs.add(name="image", datatype="FP32", shape=x.shape)
    one.contents.fp32_contents.extend(x.ravel().tolist())
    every: list[tuple[str, Any]] = [
        (_NATIVE + "Predict", native.PredictRequest(model="tiny", input=given, top_k=3)),
        (_NATIVE + "Predict", native.PredictRequest(input=files, request_id="b")),
        (_NATIVE + "Screen", native.ScreenRequest(model="tiny", input=given)),
        (_NATIVE + "Certify", native.CertifyRequest(model="tiny", input=given)),
        (_NATIVE + "Describe", native.DescribeRequest(model="tiny")),
        (_OIP + "ModelInfer", infer),
        (_OIP + "ModelInfer", typed),
        (_OIP + "ModelReady", oip.ModelReadyRequest(name="tiny")),
        (_OIP + "ModelMetadata", oip.ModelMetadataRequest(name="tiny")),
        (_OIP + "ServerReady", oip.ServerReadyRequest()),
    ]
    return [(method, message.SerializeToString()) for method, message in every]


def flip(data: bytes, rng: random.Random) -> bytes:
    """Some bits, in the front where the structure is or anywhere."""
    found = bytearray(data or b"\0")
    end = min(len(found), 64) if rng.random() < 0.7 else len(found)
    for _ in range(rng.randint(1, 8)):
        found[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(found)


def cut(data: bytes, rng: random.Random) -> bytes:
    """Only the beginning, or only the end."""
    at = rng.randint(0, len(data))
    return data[:at] if rng.random() < 0.7 else data[at:]


def insert(data: bytes, rng: random.Random) -> bytes:
    """Bytes in between."""
    at = rng.randint(0, min(len(data), 96))
    return data[:at] + rng.randbytes(rng.randint(1, 24)) + data[at:]


def repeat(data: bytes, rng: random.Random) -> bytes:
    """A part again: fields that come twice."""
    first = rng.randint(0, min(len(data), 96))
    last = rng.randint(first, min(len(data), first + 128))
    return data[:last] + data[first:last] * rng.randint(1, 50) + data[last:]


def huge(data: bytes, rng: random.Random) -> bytes:
    """A number or length that is far too large, or negative."""
    at = rng.randint(0, min(len(data), 64))
    number = rng.choice((b"\xff" * 9 + b"\x01", b"\xff\xff\xff\xff\x07", b"\x80" * 9 + b"\x01"))
    return data[:at] + number + data[at + rng.randint(0, 4) :]


def append(data: bytes, rng: random.Random) -> bytes:
    """Fields that nobody knows, groups, nested ones."""
    tag = rng.choice((b"\x0b", b"\x0c", b"\x7a", b"\xfa\x01", b"\xf8\xff\xff\xff\x0f", b"\x1d"))
    return data + tag * rng.randint(1, 200) + rng.randbytes(rng.randint(0, 16))


def tensor(_: bytes, rng: random.Random) -> bytes:
    """A whole message whose tensor is none that the model takes."""
    shape = [rng.choice((-1, 0, 1, 2, 3, 31, 32, 64, 2**31, 2**62, -(2**63)))
             for _ in range(rng.randint(0, 6))]  # fmt: skip
    datatype = rng.choice(("FP32", "FP16", "UINT8", "INT64", "BYTES", "BF16", "", "fp32", "\u0130"))
    body = rng.choice((b"", rng.randbytes(7), rng.randbytes(3 * SIDE * SIDE), special(rng)))
    request = oip.ModelInferRequest(
        model_name=rng.choice(("tiny", "", "other", "tiny" * 50)),
        model_version=rng.choice(("", "1", "2")),
        id=rng.choice(("", "x" * 200, "a b", "\n")),
    )
    for _ in range(rng.choice((0, 1, 1, 1, 2, 40))):
        request.inputs.add(name=rng.choice(("image", "", "other")), datatype=datatype, shape=shape)
    for _ in range(rng.choice((0, 1, 1, 1, 2))):
        request.raw_input_contents.append(body)
    return request.SerializeToString()


def special(rng: random.Random) -> bytes:
    """A tensor of the right size whose values are not numbers, or far out."""
    value = rng.choice((float("nan"), float("inf"), -float("inf"), 1e38, -1.0, 2.0, 1e-45))
    return struct.pack("<f", value) * (3 * SIDE * SIDE)


def files(_: bytes, rng: random.Random) -> bytes:
    """Images that are none, or lie about their size."""
    one = picture(rng.choice(("PNG", "JPEG", "GIF", "BMP", "WEBP")), rng)
    broken = rng.choice((cut, flip, insert, repeat))(one, rng)
    if one.startswith(b"\x89PNG") and rng.random() < 0.3:
        sizes = struct.pack(">II", rng.choice((1, 2**31 - 1, 65_535)), rng.choice((1, 2**20)))
        broken = one[:16] + sizes + one[24:]
    encoded = [rng.choice((broken, broken, one, b"")) for _ in range(rng.choice((0, 1, 1, 2, 90)))]
    request = native.PredictRequest(
        model="tiny", input=native.Input(images=native.Images(encoded=encoded)),
        top_k=rng.choice((0, 1, 10, 11, 2**32 - 1)),
    )  # fmt: skip
    return request.SerializeToString()


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flip, cut, insert, repeat, huge, append,
)  # fmt: skip


def wrong(rng: random.Random, good: list[tuple[str, bytes]]) -> tuple[str, bytes]:
    """A request."""
    draw = rng.random()
    if draw < 0.2:
        return _OIP + "ModelInfer", tensor(b"", rng)
    if draw < 0.35:
        return _NATIVE + "Predict", files(b"", rng)
    method, data = rng.choice(good)
    if draw < 0.42:
        # A message of another method.
        return rng.choice(good)[0], data
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = rng.choice(MUTATIONS)(data, rng)
    return method, data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    measured_in = environment(("grpcio", "protobuf", "pillow"))
    signer = Signer.generate()
    statuses: Counter[tuple[str, str]] = Counter()
    findings: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_tiny(folder / "tiny", signer)
        (folder / "signer.pub").write_text(signer.public)
        with open(folder / "stderr.txt", "w") as errors:
            process = subprocess.Popen(
                [
                    sys.executable, "-m", "firewall", "serve", str(folder / "tiny"), "--trust",
                    str(folder / "signer.pub"), "--host", "127.0.0.1", *FREE_PORTS,
                    "--false-positive-rate", "0.05",
                    "--audit-log", str(folder / "audit.jsonl"),
                ],
                stderr=errors, text=True,
            )  # fmt: skip
        audit = folder / "audit.jsonl"
        while not (audit.exists() and '"serving"' in audit.read_text()):
            if process.poll() is not None:
                raise SystemExit((folder / "stderr.txt").read_text())
            time.sleep(0.1)
        address = f"127.0.0.1:{json.loads(audit.read_text().splitlines()[0])['grpc_port']}"
        x = images(1, 20).numpy()
        good_answers = 0

        def send(number: int, channel: grpc.Channel) -> tuple[str, str]:
            rng = random.Random(arguments.seed * 1_000_003 + number)
            method, data = wrong(rng, seeds(rng))
            try:
                channel.unary_unary(method)(data, timeout=DEADLINE)
                status = "OK"
            except grpc.RpcError as error:
                status = error.code().name
            if status not in DOCUMENTED:
                findings.append({"number": number, "method": method, "status": status})
            return method.rpartition("/")[2], status

        options = (("grpc.max_send_message_length", 64 << 20),)
        channels = [
            grpc.insecure_channel(address, options=[*options, ("grpc.primary_user_agent", str(n))])
            for n in range(SENDERS)
        ]
        first = 0.0
        with ThreadPoolExecutor(SENDERS) as pool, Client(address) as client:
            for start in range(0, arguments.requests, 1000):
                numbers = range(start, min(start + 1000, arguments.requests))
                work = [(number, channels[number % SENDERS]) for number in numbers]
                statuses.update(pool.map(lambda one: send(*one), work))
                assert client.predict(x)[0].verdict.value == "accept"
                good_answers += 1
                if not first and start + 1000 >= arguments.requests / 10:
                    first = resident_mib(process.pid)
                if start % 10_000 == 0:
                    print(
                        f"{start}: {resident_mib(process.pid):.0f} MiB", file=sys.stderr, flush=True
                    )
        last = resident_mib(process.pid)
        alive = process.poll() is None
        for channel in channels:
            channel.close()
        process.terminate()
        code = process.wait(60)
        tracebacks = (folder / "stderr.txt").read_text().count("Traceback")
    by_method: dict[str, dict[str, int]] = {}
    for (method, status), count in sorted(statuses.items()):
        by_method.setdefault(method, {})[status] = count
    result = {
        "environment": measured_in,
        "requests": sum(statuses.values()),
        "seed": arguments.seed,
        "statuses": by_method,
        "undocumented": findings,
        "alive": alive,
        "exit_status": code,
        "tracebacks_in_log": tracebacks,
        "good_answers_in_between": good_answers,
        "memory_mib": {"after_a_tenth": first, "at_the_end": last, "growth": last / first - 1},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out, result)
    print(json.dumps(result["memory_mib"]), file=sys.stderr)
    if findings:
        print(f"{len(findings)} findings, such as {findings[:3]}", file=sys.stderr)


if __name__ == "__main__":
    main()
