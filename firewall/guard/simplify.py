"""Simplify an exported graph without changing what it computes.

The exporter's own optimiser also takes "x + c" for "x" where c is up to 1e-8, and so drops what
keeps a logarithm or a quotient finite. The rules here change the structure of a graph alone;
onnxruntime fuses operators when it loads it.
"""

from __future__ import annotations

import onnx_ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass
from onnxscript.optimizer import fold_constants
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules import common

#: Shapes that are computed become constants, and what undoes itself goes. Batch norms move into the
#: convolutions before them, in the exporter's arithmetic.
_RULES = (
    common.cast_cast_rule,
    common.no_op_cast_rule,
    common.no_op_expand_rule,
    common.no_op_transpose_rule,
    common.reshape_reshape_rule,
    common.slice_split_rule,
    common.transpose_transpose_rule,
    common.unsqueeze_unsqueeze_rule,
    common.flatten_to_reshape_rule,
    common.materialize_reshape_shape_rule,
    common.cast_constant_of_shape_rule,
    common.fuse_pad_into_conv_rule,
    common.fuse_batchnorm_into_conv_rule,
)


def simplify(model: onnx_ir.Model) -> None:
    """Simplify a model in place."""
    for _ in range(2):
        fold_constants(model)
        rewrite(model, _RULES)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
