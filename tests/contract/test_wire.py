"""The generated protobuf code: fresh, and at peace with what it is installed beside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WIRE = ROOT / "firewall" / "wire"


def run(*arguments: str, path: Path | None = None) -> str:
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_generated_code_is_what_the_protos_give(tmp_path: Path) -> None:
    run("protos/generate.py", "--out", str(tmp_path))
    fresh = {path.name: path.read_text() for path in tmp_path.iterdir()}
    committed = {path.name: path.read_text() for path in WIRE.glob("*_pb2.py*")}
    assert sorted(fresh) == sorted(committed)
    for name, text in fresh.items():
        assert committed[name] == text, f"{name} is stale; run python protos/generate.py"


@pytest.mark.parametrize("major", [6, 7])
def test_generated_code_loads_with_protobuf(major: int, tmp_path: Path) -> None:
    run(
        "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--target", str(tmp_path), f"protobuf>={major},<{major + 1}",
    )  # fmt: skip
    code = (
        "import google.protobuf as p\n"
        "from firewall.wire import firewall_pb2 as f, open_inference_pb2 as o\n"
        "m = o.ModelInferRequest(model_name='cat', raw_input_contents=[b'x'])\n"
        "assert o.ModelInferRequest.FromString(m.SerializeToString()) == m\n"
        "assert f.PredictRequest(top_k=3).top_k == 3\n"
        "print(p.__version__.split('.')[0])"
    )
    assert run("-c", code, path=tmp_path) == str(major)


@pytest.mark.parametrize(
    "order", ["tritonclient.grpc, firewall.client", "firewall.client, tritonclient.grpc"]
)
def test_a_program_may_hold_tritonclient_and_ours(order: str) -> None:
    assert run("-c", f"import {order}; print('both')") == "both"


def test_the_open_inference_messages_are_tritons_on_the_wire() -> None:
    """Field by field against Triton's own descriptors: same names, numbers, types and labels."""
    from tritonclient.grpc import model_config_pb2, service_pb2

    from firewall.wire import open_inference_pb2 as ours

    known = {
        **service_pb2.DESCRIPTOR.message_types_by_name,
        **model_config_pb2.DESCRIPTOR.message_types_by_name,
    }
    checked = 0
    for name, message in ours.DESCRIPTOR.message_types_by_name.items():
        theirs = known[name]
        for field in message.fields:
            other = theirs.fields_by_name[field.name]
            assert (field.number, field.type, field.is_repeated) == (
                other.number,
                other.type,
                other.is_repeated,
            ), f"{name}.{field.name}"
            checked += 1
    assert checked > 40
