"""Write docs/reference/operators.md: `python -m firewall.lift.operators_page`.

The page lists the operators of the lift from its table, and the others from the specification that
the installed onnx carries. A test compares the committed page with what this module writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx

from firewall.lift.node import EXACT, NONE, SELECTED, SIGMOID, STRAIGHT
from firewall.lift.table import NEWEST_OPSET, OPERATORS

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "operators.md"

_HEAD = f"""\
<!-- Written by `python -m firewall.lift.operators_page` (`make docs`); do not edit. -->

# Operators of the lift

`firewall.lift` runs an ONNX graph in torch, with gradients: attacks and the training of stages see
the file that is served. An operator is computed as the opset that the file imports defines it, up
to opset {NEWEST_OPSET}. What cannot be computed so is refused when the file is read, or when
inputs lead to it, by an error that names every such operator:

```
operators not supported by the lift: 'FusedConv' (com.microsoft), 'Loop'; re-export the model with
standard operators
```

`firewall.lift.unsupported(model)` returns that list. Operators of other domains are refused:
onnxruntime's optimiser and its quantisation in the format `QOperator` write such files. Export
with the optimiser off, and quantise in the format `QDQ`. Local functions are inlined. An `If`
whose condition is known when the file is read becomes the branch that it takes.

Values agree with onnxruntime to rounding. In a quantised file, rounding may move a value to the
next step of its scale, in both directions.
"""

_GRADIENTS = f"""\
## Gradients

- *{EXACT}*: the derivative. At a point without one torch's choice is taken.
- *{SELECTED}*.
- *{NONE}*: the result does not change with small changes of the input, or is an index or a shape.
- *{STRAIGHT}*.
  Clipping to the range of a type keeps its own gradient, which is 0 outside.
- *{SIGMOID}*.
  `And`, `Or`, `Xor`, `Not` and `Where` pass that gradient on.

While gradients are recorded, whole numbers and booleans that a gradient passes through are
floating-point tensors with the same values, outputs included. Without gradients every output has
the type that the file gives it.
"""

_FORMS = """\
## Forms that are refused

| operator | form |
|---|---|
| all | strings, sequences, optional values, sparse tensors; 8-bit floats; 4-bit and 2-bit \
numbers; 16 to 64-bit unsigned integers where torch cannot compute with them |
| `Attention` | `nonpad_kv_seqlen`, sliding windows, `qk_matmul_output_mode` other than 0 where \
that output is used; before opset 24 `softcap` with a mask |
| `BatchNormalization` | training mode before opset 14 |
| `CastLike` | a second input whose type is not known when the file is read |
| `Col2Im` | other than two spatial axes |
| `Conv`, `ConvTranspose`, pools | more than three spatial axes |
| `Dropout` | training mode with a ratio other than 0 |
| `GridSample` | `cubic` on more than two spatial axes |
| `If` | a condition that is not known when the file is read |
| `Mod` | `fmod=0` on floating point before opset 28, where it is not defined |
| `QuantizeLinear` | a zero point whose type is not known when the file is read; `precision` |
| `Resize` | `align_corners` and `tf_crop_and_resize` by scales that give no whole size; \
`tf_half_pixel_for_nn` |
"""


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, _GRADIENTS, "## Operators\n", *_table(), "", _FORMS, *_refused(), ""])


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


def _table() -> Iterator[str]:
    yield "| operator | opsets | gradient |"
    yield "|---|---|---|"
    for name, operator in sorted(OPERATORS.items()):
        versions = _versions(name)
        first, last = versions[0], NEWEST_OPSET
        if onnx.defs.get_schema(name, NEWEST_OPSET).deprecated:
            last = versions[-1] - 1
        yield f"| `{name}` | {first} to {last} | {operator.gradient.partition(':')[0]} |"


def _versions(name: str) -> list[int]:
    return sorted(
        schema.since_version
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.name == name and not schema.domain and schema.since_version <= NEWEST_OPSET
    )


def _refused() -> Iterator[str]:
    yield "## Standard operators that are refused\n"
    names = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
    yield ", ".join(f"`{name}`" for name in sorted(names - {*OPERATORS, "If"})) + "."


if __name__ == "__main__":
    main()
