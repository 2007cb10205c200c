"""docs/reference/settings.md is what the code says."""

from __future__ import annotations

import re

from firewall.cli.settings_page import PAGE, page
from firewall.screening.policy import Exclusion, MonitorSpec, Policy
from firewall.serve.settings import fields


def test_the_page_is_what_its_command_writes() -> None:
    assert PAGE.read_text() == page(), "stale: run make docs"


def test_every_setting_and_every_key_has_a_text() -> None:
    for name, _, field in fields():
        assert field.description, name
        assert field.description.endswith("."), name
    for model in (Policy, Exclusion, MonitorSpec):
        for name, key in model.model_fields.items():
            assert key.description, f"{model.__name__}.{name}"


def test_every_setting_of_the_group_limits_is_in_the_table_of_all_limits() -> None:
    _, _, table = page().partition("## All limits")
    named = set(re.findall(r"^\|[^|]*\|[^|]*\| `([a-z_]+)` \|", table, re.MULTILINE))
    wanted = {name for name, group, _ in fields() if group == "Limits"}
    # A lower bound of time, not an upper one.
    assert wanted - named == {"pad_latency"}


def test_every_row_has_as_many_cells_as_its_head() -> None:
    head = 0
    for line in page().splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        if cells:
            head = head or cells
            assert cells == head, line
        else:
            head = 0
