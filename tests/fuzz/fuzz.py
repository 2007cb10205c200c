"""Coverage-guided fuzzing of what reads bytes of strangers: connections, requests, and bundles.

    pip install atheris
    python -m tests.fuzz.fuzz codec|bundle|connection [--seconds 600] [--report FILE]

An input that raises anything but an error of ours is a finding: it is kept beside this script as
`crash-*`, and the exit status is not 0. Begins from good inputs. Not part of the tests: atheris has
wheels for few versions of Python, and ten minutes are the least that means anything.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "benchmarks" / "results" / "fuzz"
#: Bytes of an input.
MOST = 1 << 14


def bundle_folder() -> Path:
    """A tiny bundle, made by the parent: without instruments, and torch stays there."""
    return Path(os.environ["FUZZ_FOLDER"]) / "tiny"


def codec() -> tuple[Callable[[bytes], None], list[bytes]]:
    """Requests of every method that takes one; the first byte says which."""
    import numpy as np

    from firewall.bundle.manifest import Manifest
    from firewall.serve import codec as ours
    from firewall.serve.call import Call
    from firewall.serve.codec import Limits
    from firewall.serve.decoder import Decoder
    from firewall.serve.known_header import KnownHeaders
    from firewall.serve.wire_scan import check_fields
    from firewall.wire import firewall_pb2 as native
    from firewall.wire import open_inference_pb2 as oip

    manifest = Manifest.from_json((bundle_folder() / "manifest.json").read_bytes())
    # A small input, so that a whole tensor fits into an input of the fuzzer.
    manifest = manifest.model_copy(
        update={"input": manifest.input.model_copy(update={"height": 8, "width": 8})}
    )
    limits = Limits(rows=4, pixels=4096)
    decoder = Decoder(limits)
    kinds: tuple[Any, ...] = (
        oip.ModelInferRequest, native.PredictRequest, native.ScreenRequest, native.DescribeRequest,
        oip.ModelReadyRequest,
    )  # fmt: skip

    def one(data: bytes) -> None:
        if not data:
            return
        kind = kinds[data[0] % len(kinds)]
        call = Call.local()
        check_fields(data[1:], kind.DESCRIPTOR)
        try:
            request = kind.FromString(data[1:])
        except Exception as error:
            if type(error).__name__ == "DecodeError":
                return
            raise
        if kind is oip.ModelInferRequest:
            call.name("id", request.id)
            wire = ours.tensor_from_infer(request, manifest, limits)
            # What is known of its header must say of it what parsing says.
            known = KnownHeaders()
            known.keep(data[1:], request, manifest, wire.shape)
            found = known.find(data[1:])
            if found is not None and found.tensor(data[1:]).tobytes() != wire.tobytes():
                raise AssertionError("a known header reads another tensor")
        elif kind in (native.PredictRequest, native.ScreenRequest):
            call.name("request_id", request.request_id)
            decoder.batch(request.input, manifest, call)

    x = np.zeros((1, 3, 8, 8), np.float32)
    infer = oip.ModelInferRequest(model_name="tiny", id="a")
    infer.inputs.add(name="image", datatype="FP32", shape=x.shape)
    infer.raw_input_contents.append(x.tobytes())
    typed = oip.ModelInferRequest(model_name="tiny")
    typed.inputs.add(name="image", datatype="FP32", shape=x.shape).contents.fp32_contents.extend(
        x.ravel().tolist()
    )
    tensor = native.Tensor(datatype="FP32", shape=x.shape, data=x.tobytes())
    files = native.Images(encoded=[_picture("PNG"), _picture("JPEG")])
    return one, [
        b"\0" + infer.SerializeToString(),
        b"\0" + typed.SerializeToString(),
        b"\1" + native.PredictRequest(input=native.Input(tensor=tensor)).SerializeToString(),
        b"\1" + native.PredictRequest(input=native.Input(images=files)).SerializeToString(),
        b"\3" + native.DescribeRequest(model="tiny", version="1").SerializeToString(),
    ]


def bundle() -> tuple[Callable[[bytes], None], list[bytes]]:
    """Files of a bundle, each by what reads it; the first byte says which."""
    from firewall.bundle import store
    from firewall.bundle.manifest import Manifest
    from firewall.bundle.onnx_file import check_graph
    from firewall.bundle.store import Bundle
    from firewall.screening.calibration import Calibration
    from firewall.screening.remote import RemoteSpec
    from firewall.screening.selftest import SelfTest
    from firewall.screening.smoothing import Smoothing

    folder = bundle_folder()
    good = Manifest.from_json((folder / "manifest.json").read_bytes())

    def labels(data: bytes) -> None:
        _ = Bundle(good, {"labels.json": data}, "", "").labels

    def signature(data: bytes) -> None:
        store._check_signature(data, b"manifest", {"0" * 64})

    readers: tuple[tuple[str, Callable[[bytes], Any]], ...] = (
        ("manifest.json", Manifest.from_json),
        ("signature.json", signature),
        ("calibration.json", Calibration.from_json),
        ("labels.json", labels),
        ("selftest.npz", SelfTest.from_npz),
        ("cheap.onnx", lambda data: check_graph("cheap.onnx", data)),
        ("", Smoothing.from_json),
        ("", RemoteSpec.from_json),
    )

    def one(data: bytes) -> None:
        if data:
            readers[data[0] % len(readers)][1](data[1:])

    seeds = [
        bytes([number]) + (folder / name).read_bytes()[: MOST - 1]
        for number, (name, _) in enumerate(readers)
        if name
    ]
    few = json.loads((folder / "calibration.json").read_text())
    few["part_a"], few["part_b"] = few["part_a"][:2], few["part_b"][:2]
    return one, [*seeds, b"\2" + json.dumps(few).encode(), b"\6{}", b"\7{}"]


def connection() -> tuple[Callable[[bytes], None], list[bytes]]:
    """What a client sends, in one piece or, by its first byte, in several; calls are answered."""
    import threading

    import hpack

    from firewall.http2 import frames
    from firewall.http2.connection import Began, Bounds, Came, Connection
    from firewall.http2.frames import ErrorCode, frame
    from firewall.serve.exchange import Exchange
    from firewall.serve.grpc_wire import Head, prefixed, read_head

    class Link:
        """A connection's, without a socket."""

        peer, auth = "ipv4:127.0.0.1:1", dict[str, Any]()

        def __init__(self) -> None:
            self.lock = threading.RLock()
            self.machine: Connection[Head] = Connection(read_head, Bounds(streams=8))
            self.exchanges: dict[int, Exchange] = {}

        def grant(self, stream: int, size: int) -> None:
            self.machine.grant(stream, size)

        def reset(self, stream: int) -> None:
            self.machine.reset(stream, ErrorCode.CANCEL)

        def ended(self, stream: int) -> None:
            self.exchanges.pop(stream, None)

        def flush(self) -> None:
            sent = self.machine.take()
            while sent and not sent.startswith(b"HTTP/1.1"):
                size = int.from_bytes(sent[:3], "big")
                if size > frames.FRAME_SIZE or sent[3] > frames.CONTINUATION:
                    raise AssertionError("no frame is sent like that")
                if len(sent) < 9 + size:
                    raise AssertionError("half a frame is sent")
                sent = sent[9 + size :]

        def begin(self, stream: int, head: Head) -> None:
            exchange = self.exchanges[stream] = Exchange(cast(Any, self), stream, head, 1000)

            def told(came: Any) -> None:
                exchange.end(came if isinstance(came, bytes) else None)

            exchange.receive(told)

        def take(self, data: bytes) -> None:
            for event in self.machine.receive(data):
                exchange = self.exchanges.get(event.stream)
                if isinstance(event, Began):
                    self.begin(event.stream, event.head)
                    if event.ended and event.stream in self.exchanges:
                        self.exchanges[event.stream].came(b"", True)
                elif exchange is not None and isinstance(event, Came):
                    exchange.came(event.data, event.ended)
                elif exchange is not None:
                    del self.exchanges[event.stream]
                    exchange.gone()
            self.flush()

    def one(data: bytes) -> None:
        link, step = Link(), (data[0] if data else 0) or len(data)
        for at in range(1, len(data), max(1, step)):
            link.take(data[at : at + step])
        if len(link.exchanges) > 8:
            raise AssertionError("more calls are held than may be open")

    fields = [
        (":method", "POST"), (":scheme", "http"), (":path", "/a.B/C"), (":authority", "x"),
        ("te", "trailers"), ("content-type", "application/grpc"), ("grpc-timeout", "10S"),
        ("x-some-bin", "AAEC"),
    ]  # fmt: skip
    encoder = hpack.Encoder()
    start = frames.PREFACE + frames.settings({frames.INITIAL_WINDOW_SIZE: 100})
    call = frame(frames.HEADERS, frames.END_HEADERS, 1, encoder.encode(fields))
    again = frame(frames.HEADERS, frames.END_HEADERS, 3, encoder.encode(fields))
    message = prefixed(b"m" * 200)
    whole = start + call + frame(frames.DATA, frames.END_STREAM, 1, message)
    more = again + frame(frames.DATA, 0, 3, message[:9]) + frame(frames.DATA, 1, 3, message[9:])
    other = frame(frames.PING, 0, 0, bytes(8)) + frame(
        frames.WINDOW_UPDATE, 0, 0, bytes([0, 0, 1, 0])
    )
    reset = frame(frames.RST_STREAM, 0, 3, bytes(4)) + frame(frames.GOAWAY, 0, 0, bytes(8))
    halves = frame(frames.HEADERS, 0, 5, b"\x82") + frame(frames.CONTINUATION, 4, 5, b"\x86")
    return one, [
        b"\0" + whole, b"\7" + whole + more, b"\0" + whole + again + reset,
        b"\x20" + start + other + halves, b"\0GET / HTTP/1.1\r\n\r\n",
    ]  # fmt: skip


def _picture(kind: str) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 90)).save(buffer, kind)
    return buffer.getvalue()


TARGETS = {"codec": codec, "bundle": bundle, "connection": connection}


def child(name: str, options: list[str]) -> None:
    """The fuzzer's process: libFuzzer ends it when it is done."""
    import atheris

    with atheris.instrument_imports(include=["firewall", "PIL", "hpack"]):
        from firewall.errors import FirewallError

        one, seeds = TARGETS[name]()
    corpus = Path(os.environ["FUZZ_FOLDER"]) / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)

    def test(data: bytes) -> None:
        try:
            one(data)
        except FirewallError:
            return

    atheris.Setup([sys.argv[0], *options, str(corpus)], test)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--report", type=Path, help="by default among the results")
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        child(arguments.target, arguments.child)
        return
    from benchmarks.environment import environment
    from firewall.bundle.signing import Signer
    from tests.support.tiny import build_tiny

    measured_in = environment(("atheris", "protobuf", "pillow"))

    with tempfile.TemporaryDirectory() as folder:
        build_tiny(Path(folder) / "tiny", Signer.generate(), rows=40)
        done = subprocess.run(
            [
                sys.executable, __file__, arguments.target, "--child",
                f"-max_total_time={arguments.seconds}", f"-max_len={MOST}", "-timeout=10",
                "-rss_limit_mb=4096", f"-artifact_prefix={HERE}/", "-print_final_stats=1",
            ],
            env=os.environ | {"FUZZ_FOLDER": folder},
            stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    lines = done.stderr.splitlines()
    figures = {
        key: int(line.rpartition(" ")[2])
        for line in lines
        for key in ("number_of_executed_units", "new_units_added", "peak_rss_mb")
        if line.startswith(f"stat::{key}:")
    }
    print("\n".join(lines[-12:]), file=sys.stderr)
    report = arguments.report or RESULTS / f"{arguments.target}.json"
    body = {
        "environment": measured_in,
        "target": arguments.target,
        "seconds": arguments.seconds,
        "exit": done.returncode,
    }
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(body | figures, indent=1) + "\n")
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
