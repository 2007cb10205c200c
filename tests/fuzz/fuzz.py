"""Coverage-guided fuzzing of what reads bytes of strangers: requests, and bundles.

    pip install atheris
    python -m tests.fuzz.fuzz codec|bundle [--seconds 600] [--report FILE]

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
from typing import Any

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
    from firewall.guard.calibration import Calibration
    from firewall.guard.remote import RemoteSpec
    from firewall.guard.selftest import SelfTest
    from firewall.guard.smoothing import Smoothing

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


def _picture(kind: str) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 90)).save(buffer, kind)
    return buffer.getvalue()


TARGETS = {"codec": codec, "bundle": bundle}


def child(name: str, options: list[str]) -> None:
    """The fuzzer's process: libFuzzer ends it when it is done."""
    import atheris

    with atheris.instrument_imports(include=["firewall", "PIL"]):
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
