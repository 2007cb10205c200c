"""Every operator of the lift against the cases of ONNX's own backend tests."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from firewall.errors import Unsupported
from firewall.lift import OnnxModule, unsupported
from firewall.lift.node import Refusal
from firewall.lift.table import OPERATORS
from firewall.lift.tensors import tensor_of

#: Cases that are refused, by a pattern of their names, and why.
REFUSED = {
    r"test_(cast|castlike)_.*(FLOAT8|FLOAT4|INT4|INT2)": "types that torch cannot compute with",
    r"test_(de)?quantizelinear_(e4m3fn|e5m2|u?int4|u?int2|float4|blocked_symmetric)": "such types",
    r"test_(add|sub|div|mod|max|min|greater|less)(_equal)?_uint(16|32|64)": "no kernels in torch",
    r"test_equal_string": "strings",
    r"test_training_dropout": "random values",
    r"test_(identity_sequence|identity_opt|if_seq|if_opt)$": "values that are no tensors",
    r"test_if$": "a condition that depends on an input",
    r"test_affine_grid_.*_expanded": "a condition that depends on a shape",
    r"test_attention_.*(nonpad|padded_kv|ext_cache)": "a cache that is filled in place",
    r"test_attention_.*window": "a sliding window",
    r"test_attention_.*qk_matmul_(bias|softcap|softmax|output)": "scores after a later step",
    r"test_attention_4d_softcap_neginf_mask": "softcap with a mask in opset 23",
    r"test_resize_downsample_scales_(linear|cubic)_align_corners": "onnxruntime differs from it",
    r"test_col2im_5d": "three spatial axes",
}


@pytest.fixture(scope="module")
def cases() -> list[Any]:
    from onnx.backend.test import loader

    with warnings.catch_warnings():
        # The makers of the cases divide by zero and overflow on purpose.
        warnings.simplefilter("ignore")
        return list(loader.load_model_tests(kind="node"))


def operators(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from operators(inner)


def is_known(case: Any) -> bool:
    """Whether all operators are in the table; `If` is no operator, but may be folded."""
    return set(operators(case.model.graph)) <= {*OPERATORS, "If"} and not case.model.functions


def tensor(value: Any) -> torch.Tensor:
    if isinstance(value, onnx.TensorProto):
        return tensor_of(value)
    array = np.asarray(value)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if array.dtype == object:
        raise Refusal("no tensor")
    return torch.from_numpy(np.array(array))


def difference(case: Any) -> str | None:
    """Run a case; what is wrong with the answer, None where nothing is.

    Raises:
        Unsupported, Refusal: the lift, or torch, does not have it.

    """
    module = OnnxModule(case.model.SerializeToString())
    for given, expected in case.data_sets:
        feed = {one.name: tensor(value)
                for one, value in zip(case.model.graph.input, given, strict=True)}  # fmt: skip
        with torch.no_grad():
            found = module(**feed)
        for (name, value), wanted in zip(found.items(), map(tensor, expected), strict=True):
            if (value.dtype, value.shape) != (wanted.dtype, wanted.shape):
                return f"{name}: {value.dtype} {list(value.shape)}"
            # Half a dozen roundings of 16-bit numbers may fall the other way.
            half = {torch.float16: 2e-3, torch.bfloat16: 2e-2}.get(wanted.dtype, 0.0)
            pair = value.double().numpy(), wanted.double().numpy()
            limits = {"rtol": max(case.rtol, half), "atol": max(case.atol, half, 1e-6)}
            if not np.allclose(*pair, **limits, equal_nan=True):
                return f"{name}: other values"
    return None


def test_known_operators_give_the_values_of_the_specification(cases: list[Any]) -> None:
    wrong, refused, right = {}, [], set()
    for case in filter(is_known, cases):
        try:
            found = difference(case)
        except (Unsupported, Refusal):
            refused.append(case.name)
            continue
        if found is None:
            right.update(operators(case.model.graph))
        else:
            wrong[case.name] = found
    assert not wrong
    unexpected = [name for name in refused if not any(re.match(one, name) for one in REFUSED)]
    assert not unexpected, "refused without a reason in REFUSED"
    idle = [one for one in REFUSED if not any(re.match(one, name) for name in refused)]
    assert not idle, "nothing is refused for these reasons any more"
    # ONNX has no case of its own for this one; test_lift_opsets has.
    assert set(OPERATORS) - right == {"GlobalLpPool"}


def test_other_operators_are_refused_by_name(cases: list[Any]) -> None:
    for case in cases:
        if is_known(case) or case.model.functions:
            continue
        missing = unsupported(case.model)
        named = {node.op_type for node in case.model.graph.node} - set(OPERATORS)
        assert any(repr(name) in one for name in named for one in missing), case.name
        with pytest.raises(Unsupported, match="not supported by the lift: ") as caught:
            OnnxModule(case.model.SerializeToString())
        assert all(one in str(caught.value) for one in missing)
