"""What is known of a request answers as parsing it would."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from firewall.bundle.store import Bundle
from firewall.serve import codec
from firewall.serve.codec import Limits
from firewall.serve.known_header import KnownHeaders
from firewall.wire import open_inference_pb2 as oip
from tests.support.tiny import wire

LIMITS = Limits()


def request(batch: np.ndarray, **fields: Any) -> bytes:
    message = oip.ModelInferRequest(model_name="tiny", **fields)
    message.inputs.add(name="image", datatype="FP32", shape=batch.shape)
    message.raw_input_contents.append(batch.tobytes())
    return message.SerializeToString()


def read(known: KnownHeaders, data: bytes, tiny: Bundle) -> np.ndarray:
    """As the service does when nothing is known."""
    message = oip.ModelInferRequest.FromString(data)
    batch = codec.tensor_from_infer(message, tiny.manifest, LIMITS)
    known.keep(data, message, tiny.manifest, batch.shape)
    return batch


@pytest.mark.parametrize("version", ["", "1", "12"])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_second_image_is_read_without_parsing(tiny: Bundle, rows: int, version: str) -> None:
    known = KnownHeaders()
    first, second = wire(rows, 1), wire(rows, 2)
    data = request(first, model_version=version)
    assert known.find(data) is None
    read(known, data, tiny)
    found = known.find(request(second, model_version=version))
    assert found is not None
    assert (found.model, found.version, found.shape) == ("tiny", version, second.shape)
    assert found.manifest is tiny.manifest
    batch = found.tensor(request(second, model_version=version))
    assert batch.tobytes() == second.tobytes()
    assert batch.flags.aligned


def test_another_header_is_another_request(tiny: Bundle) -> None:
    known = KnownHeaders()
    batch = wire(1, 1)
    read(known, request(batch), tiny)
    other = oip.ModelInferRequest(model_name="tinx")
    other.inputs.add(name="image", datatype="FP32", shape=batch.shape)
    other.raw_input_contents.append(batch.tobytes())
    assert len(other.SerializeToString()) == len(request(batch))
    assert known.find(other.SerializeToString()) is None
    assert known.find(request(wire(2, 1))) is None


def test_a_request_with_an_id_is_not_kept(tiny: Bundle) -> None:
    known = KnownHeaders()
    data = request(wire(1, 1), id="mine")
    read(known, data, tiny)
    assert known.find(data) is None


@pytest.mark.parametrize("last", [True, False])
def test_a_tensor_that_only_looks_as_if_it_came_last_is_not_taken(tiny: Bundle, last: bool) -> None:
    """After the real tensor an unknown field whose content ends as the tensor does."""
    known = KnownHeaders()
    batch = wire(1, 1)
    raw = batch.tobytes()
    size = bytes([len(raw) & 0x7F | 0x80, len(raw) >> 7])
    tail = bytes([7 << 3 | 2]) + size + raw
    inner = len(tail)
    hidden = bytes([15 << 3 | 2, inner & 0x7F | 0x80, inner >> 7]) + tail
    data = request(batch) + (b"" if last else hidden)
    read(known, data, tiny)
    assert (known.find(data) is not None) == last


def test_they_are_bounded(tiny: Bundle) -> None:
    known = KnownHeaders()
    batch = wire(1, 1)
    for number in range(1, 700):
        message = oip.ModelInferRequest(model_name="tiny", model_version="9" * number)
        message.inputs.add(name="image", datatype="FP32", shape=batch.shape)
        message.raw_input_contents.append(batch.tobytes())
        known.keep(message.SerializeToString(), message, tiny.manifest, batch.shape)
    assert len(known._by_length) == 256


@pytest.mark.parametrize("name", ["", "an id"])
def test_an_answer_is_what_protobuf_writes(tiny: Bundle, name: str) -> None:
    from firewall.screening.verdict import Answer, Decision, Verdict

    outputs = np.random.default_rng(0).normal(size=(3, 10)).astype(np.float32)
    answer = Answer((Decision(Verdict.ACCEPT),) * 3, outputs)
    written = codec.infer_response(name, tiny.manifest, answer, "r")
    message = oip.ModelInferResponse.FromString(written)
    manifest = tiny.manifest
    assert message == oip.ModelInferResponse(
        model_name=manifest.name,
        model_version=manifest.version,
        id=name,
        outputs=[
            oip.ModelInferResponse.InferOutputTensor(
                name=manifest.output, datatype="FP32", shape=[3, 10]
            )
        ],
        raw_output_contents=[outputs.tobytes()],
    )
