"""The OpenAPI page is true: schemathesis asks what it allows, and reads the answers by it."""

from __future__ import annotations

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)

from firewall.serve import openapi
from tests.support.served import Served

schema = schemathesis.openapi.from_dict(openapi.document())


def test_page_is_served(server: Served) -> None:
    assert httpx.get(f"{server.rest}/openapi.json").json() == openapi.document()


@pytest.mark.parametrize("known", [False, True], ids=["any-model", "known-model"])
@schema.parametrize()
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_answers_are_those_of_the_page(
    case: schemathesis.Case, known: bool, server: Served
) -> None:
    if known:
        names = {"model": "tiny", "version": "1"}
        case.path_parameters |= {key: names[key] for key in case.path_parameters}
    case.call_and_validate(
        base_url=server.rest,
        timeout=20,
        checks=[
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
        ],
    )
