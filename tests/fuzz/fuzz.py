"""Coverage-guided fuzzing of what reads bytes of strangers: requests, images, bundles, policies.

    pip install atheris
    python -m tests.fuzz.fuzz grpc|rest|image|bundle|policy [--seconds 600] [--report FILE]

An input that raises anything but an error of ours is a finding: it is kept beside this script as
`crash-*`, and the exit status is not 0. Begins from good inputs. Not part of the tests: atheris has
wheels for few versions of Python, and ten minutes are the least that means anything.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
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


def small_manifest() -> Any:
    """A small input, so that a whole tensor fits into an input of the fuzzer."""
    from firewall.bundle.manifest import Manifest

    manifest = Manifest.from_json((bundle_folder() / "manifest.json").read_bytes())
    return manifest.model_copy(
        update={"input": manifest.input.model_copy(update={"height": 8, "width": 8})}
    )


def rows_of() -> Callable[[Any], None]:
    """What the data plane does with a batch before a model sees it."""
    from firewall.decoding.decode import decode_image
    from firewall.screening.preprocess import check_values, to_wire
    from firewall.serve.tensors import EncodedImages, Limits, check_row_count, to_rows

    manifest, limits = small_manifest(), Limits(rows=4)

    def read(batch: Any) -> None:
        if isinstance(batch, EncodedImages):
            check_row_count(batch.field, len(batch.images), limits)
            for image in batch.images:
                pixels = decode_image(
                    image, manifest.input, manifest.preprocessing, field="image", max_pixels=4096
                )
                to_wire(pixels[None], manifest.input)
        else:
            rows = to_rows(batch, manifest.input, limits)
            assert rows.shape[1:] == manifest.input.shape
            check_values(rows, manifest.input, batch.body)

    return read


def grpc() -> tuple[Callable[[bytes], None], list[bytes]]:
    """Messages of every method that takes one; the first byte says which."""
    import numpy as np

    from firewall.serve import converters
    from firewall.serve.context import RequestContext
    from firewall.serve.grpc_api import parse
    from firewall.serve.tensors import Limits
    from firewall.wire import firewall_pb2 as native
    from firewall.wire import open_inference_pb2 as oip

    read, limits = rows_of(), Limits(rows=4)
    kinds: tuple[Any, ...] = (
        oip.ModelInferRequest, native.PredictRequest, native.ScreenRequest, native.DescribeRequest,
        oip.ModelReadyRequest, native.CertifyRequest, oip.ModelStatisticsRequest,
    )  # fmt: skip

    def one(data: bytes) -> None:
        if not data:
            return
        kind = kinds[data[0] % len(kinds)]
        context = RequestContext.local()
        request = parse(data[1:], kind)
        if kind is oip.ModelInferRequest:
            asked = converters.infer_request(request, limits)
            context.set_request_id("id", asked.id)
            read(asked.input.batch)
        elif kind in (native.PredictRequest, native.ScreenRequest, native.CertifyRequest):
            screened = converters.native_request(request)
            context.set_request_id("request_id", screened.request_id)
            read(screened.batch)

    x = np.zeros((1, 3, 8, 8), np.float32)
    header = {"name": "image", "datatype": "FP32", "shape": x.shape}
    infer = oip.ModelInferRequest(model_name="tiny", id="a", inputs=[header])
    infer.raw_input_contents.append(x.tobytes())
    infer.outputs.add(name="logits").parameters["classification"].int64_param = 3
    typed = oip.ModelInferRequest(model_name="tiny")
    typed.inputs.add(**header).contents.fp32_contents.extend(x.ravel().tolist())
    encoded = [_picture("PNG"), _picture("JPEG"), _picture("WEBP")]
    images = oip.ModelInferRequest(model_name="tiny")
    images.inputs.add(name="image", datatype="BYTES", shape=[3]).contents.bytes_contents.extend(
        encoded
    )
    raw_images = oip.ModelInferRequest(
        inputs=[{"name": "image", "datatype": "BYTES", "shape": [3]}],
        raw_input_contents=[_joined(encoded)],
    )
    tensor = native.Tensor(datatype="FP32", shape=x.shape, data=x.tobytes())
    files = native.Images(encoded=encoded)
    return one, [
        b"\0" + infer.SerializeToString(),
        b"\0" + typed.SerializeToString(),
        b"\0" + images.SerializeToString(),
        b"\0" + raw_images.SerializeToString(),
        b"\1" + native.PredictRequest(input=native.Input(tensor=tensor)).SerializeToString(),
        b"\1" + native.PredictRequest(input=native.Input(images=files)).SerializeToString(),
        b"\3" + native.DescribeRequest(model="tiny", version="1").SerializeToString(),
    ]


def rest() -> tuple[Callable[[bytes], None], list[bytes]]:
    """HTTP bodies. The first byte says which route, media type and coding it has; the two after it
    are the length of the JSON before binary data, and 0 is none.
    """
    import gzip
    import zlib

    from firewall.serve import rest_converters
    from firewall.serve.context import RequestContext
    from firewall.serve.tensors import Limits

    read, limits = rows_of(), Limits(rows=4)
    media = ("application/json", "multipart/form-data; boundary=cut", "image/webp", "")
    codings = ("", "gzip", "deflate")

    def one(data: bytes) -> None:
        if len(data) < 3:
            return
        kind = data[0]
        headers = {
            "content-type": media[kind % 4],
            "content-encoding": codings[kind // 4 % 3],
        }
        if length := int.from_bytes(data[1:3], "little"):
            headers[rest_converters.BINARY_HEADER] = str(length)
        request = rest_converters.Request(data[3:], headers, {"model": "tiny"}, 1 << 16)
        context = RequestContext.local()
        if kind // 12 % 2:
            screened = rest_converters.native_request(request, limits)
            context.set_request_id("request_id", screened.request.request_id)
            read(screened.request.batch)
        else:
            asked = rest_converters.infer_request(request, limits)
            context.set_request_id("id", asked.request.id)
            read(asked.request.input.batch)

    x = [0.0] * 192
    entry = {"name": "image", "datatype": "FP32", "shape": [1, 3, 8, 8]}
    output = {"name": "logits", "parameters": {"classification": 2, "binary_data": True}}
    text = json.dumps({"id": "a", "inputs": [entry | {"data": x}], "outputs": [output]}).encode()
    sized = entry | {"parameters": {"binary_data_size": 768}}
    head = json.dumps({"inputs": [sized], "parameters": {"binary_data_output": True}}).encode()
    encoded = _joined([_picture("PNG"), _picture("WEBP")])
    files = {"name": "image", "datatype": "BYTES", "shape": [2],
             "parameters": {"binary_data_size": len(encoded)}}  # fmt: skip
    images = json.dumps({"inputs": [files]}).encode()
    base64 = json.dumps({"images": [_base64("JPEG"), _base64("WEBP")], "top_k": 3}).encode()
    form = (
        b'--cut\r\nContent-Disposition: form-data; name="top_k"\r\n\r\n3\r\n'
        b'--cut\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n'
        b"Content-Type: image/jpeg\r\n\r\n" + _picture("JPEG") + b"\r\n--cut--\r\n"
    )
    nothing = b"\0\0"
    return one, [
        b"\0" + nothing + text,
        b"\4" + nothing + gzip.compress(text, mtime=0),
        b"\x08" + nothing + zlib.compress(text),
        b"\0" + len(head).to_bytes(2, "little") + head + bytes(768),
        b"\0" + len(images).to_bytes(2, "little") + images + encoded,
        b"\x0c" + nothing + base64,
        b"\x0c" + nothing + json.dumps({"tensor": entry | {"data": x}, "pixels": True}).encode(),
        b"\x0d" + nothing + form,
        b"\x0e" + nothing + _picture("WEBP"),
        b"\x12" + nothing + gzip.compress(_picture("PNG"), mtime=0),
    ]


def image() -> tuple[Callable[[bytes], None], list[bytes]]:
    """Files of one image: the header, its plan, and the pixels. The first byte says how many
    channels the model takes.
    """
    from firewall.screening.image_header import read_header

    from firewall.bundle.spec import InputSpec, Preprocessing
    from firewall.decoding.decode import Target, decode, plan_decoding
    from tests.support.image_files import animation, encoded, many_scans

    targets = [
        Target.of(InputSpec(channels=channels, height=8, width=8), Preprocessing(resize=10))
        for channels in (1, 3, 4)
    ]

    def one(data: bytes) -> None:
        if not data:
            return
        target = targets[data[0] % 3]
        header = read_header(data[1:], "image")
        assert header.width > 0
        assert header.height > 0
        plan = plan_decoding(data[1:], target, field="image", max_pixels=1 << 16)
        pixels = decode(data[1:], plan, target, field="image")
        assert pixels.shape == (8, 8, target.channels)

    options: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("JPEG", "RGB", {}), ("JPEG", "L", {}), ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "CMYK", {}), ("PNG", "RGB", {}), ("PNG", "RGBA", {}), ("PNG", "P", {}),
        ("PNG", "1", {}), ("PNG", "LA", {}), ("WEBP", "RGB", {"quality": 30}),
        ("WEBP", "RGB", {"lossless": True}), ("WEBP", "RGBA", {}),
    )  # fmt: skip
    files = [encoded(12, 9, kind, mode, **extra) for kind, mode, extra in options]
    files += [animation("PNG"), animation("WEBP"), many_scans(16, 16, 3)]
    files.append(encoded(12, 9, "JPEG", exif=_upside_down()))
    return one, [bytes([number]) + file for number in range(3) for file in files]


def bundle() -> tuple[Callable[[bytes], None], list[bytes]]:
    """Files of a bundle, each by what reads it; the first byte says which."""
    from firewall.bundle.manifest import Manifest
    from firewall.bundle.onnx_file import check_graph
    from firewall.bundle.store import Bundle, open_bundle
    from firewall.screening.calibration import Calibration
    from firewall.screening.selftest import SelfTest
    from firewall.screening.smoothing import Smoothing

    folder = bundle_folder()
    good = Manifest.from_json((folder / "manifest.json").read_bytes())
    copy = Path(os.environ["FUZZ_FOLDER"]) / "copy"
    shutil.copytree(folder, copy)
    signer = str(json.loads((folder / "signature.json").read_text())["public_key"])

    def labels(data: bytes) -> None:
        _ = Bundle(good, {"labels.json": data}, "", "").labels

    def signature(data: bytes) -> None:
        (copy / "signature.json").write_bytes(data)
        open_bundle(copy, {signer})

    readers: tuple[tuple[str, Callable[[bytes], Any]], ...] = (
        ("manifest.json", Manifest.from_json),
        ("signature.json", signature),
        ("calibration.json", Calibration.from_json),
        ("labels.json", labels),
        ("selftest.npz", SelfTest.from_npz),
        ("cheap.onnx", lambda data: check_graph("cheap.onnx", data)),
        ("", Smoothing.from_json),
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


def policy() -> tuple[Callable[[bytes], None], list[bytes]]:
    """Texts of policies, and of the tokens of clients; the first byte says which."""
    from firewall.errors import ConfigError
    from firewall.screening.policy import Policy
    from firewall.serve.auth import Tokens

    folder = Path(os.environ["FUZZ_FOLDER"])

    def one(data: bytes) -> None:
        if not data:
            return
        if data[0] % 2:
            path = folder / "tokens.toml"
            path.write_bytes(data[1:])
            Tokens.load(path)
            return
        try:
            text = data[1:].decode()
        except UnicodeDecodeError:
            return
        try:
            Policy.parse(text)
        except ConfigError as error:
            assert len(str(error)) < 4000

    good = """
mode = "monitor"
sample = 50.0
false_positive_rate = 0.05
paranoia = 2
on_fault = "reject"
disclose = "diagnostics"
outputs = "rounded"
rows = "each"
min_version = "1.2"
[[exclusions]]
id = "a"
client = "token:b"
detector = "noise-floor"
[[monitors]]
name = "queries"
plugin = "query-similarity"
threshold = 5
config = { window = 100, deep = { a = [1, [2, [3]]] } }
"""
    tokens = f'[clients]\nfriend = "{"0" * 64}"\n'
    return one, [b"\0" + good.encode(), b"\0", b"\1" + tokens.encode()]


def _picture(kind: str) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 90)).save(buffer, kind)
    return buffer.getvalue()


def _base64(kind: str) -> str:
    import base64

    return base64.b64encode(_picture(kind)).decode()


def _joined(elements: list[bytes]) -> bytes:
    from firewall.serve.tensors import join_bytes_tensor

    return join_bytes_tensor(elements)


def _upside_down() -> bytes:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 3
    return exif.tobytes()


TARGETS = {"grpc": grpc, "rest": rest, "image": image, "bundle": bundle, "policy": policy}


def child(name: str, options: list[str]) -> None:
    """The fuzzer's process: libFuzzer ends it when it is done."""
    import atheris

    with atheris.instrument_imports(include=["firewall", "PIL", "python_multipart"]):
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
