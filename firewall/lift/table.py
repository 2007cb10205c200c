"""All operators of the lift, in one table by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from firewall.lift import (
    attention,
    comparison,
    conversion,
    convolution,
    elementwise,
    indexing,
    normalisation,
    pooling,
    products,
    quantisation,
    reductions,
    resizing,
    shapes,
)
from firewall.lift.node import Operator

#: Newest version of the standard operators whose specification the lift was checked against.
NEWEST_OPSET = 28

OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        **attention.OPERATORS,
        **comparison.OPERATORS,
        **conversion.OPERATORS,
        **convolution.OPERATORS,
        **elementwise.OPERATORS,
        **indexing.OPERATORS,
        **normalisation.OPERATORS,
        **pooling.OPERATORS,
        **products.OPERATORS,
        **quantisation.OPERATORS,
        **reductions.OPERATORS,
        **resizing.OPERATORS,
        **shapes.OPERATORS,
    }
)
