"""docs/reference/operators.md is what the table of the lift says."""

from __future__ import annotations

import onnx

from firewall.lift.operators_page import PAGE, page
from firewall.lift.table import NEWEST_OPSET, OPERATORS


def test_the_page_is_what_its_command_writes() -> None:
    assert PAGE.read_text() == page(), "stale: run make docs"


def test_every_operator_is_one_of_the_specification() -> None:
    for name in OPERATORS:
        assert onnx.defs.has(name), name


def test_the_lift_knows_the_newest_opset_of_the_installed_onnx() -> None:
    assert onnx.defs.onnx_opset_version() == NEWEST_OPSET, "check what changed, then raise it"
