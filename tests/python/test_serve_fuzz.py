# SPDX-License-Identifier: Apache-2.0
"""Requests that schemathesis draws from the server's own OpenAPI document, right and wrong ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from hybridgen import LLM
from serving import Served, engine_of, served

EXAMPLES = 100 if os.environ.get("HYBRIDGEN_LONG") else 8
CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]
ACCEPTED: dict[str, dict[str, Any]] = {
    "POST /v1/completions": {"model": "tiny", "prompt": "w1"},
    "POST /v1/chat/completions": {
        "model": "tiny",
        "messages": [{"role": "user", "content": "w1"}],
    },
    "POST /tokenize": {"prompt": "w1"},
}
OPERATIONS = (
    "POST /v1/completions",
    "POST /v1/chat/completions",
    "POST /tokenize",
    "GET /v1/models",
    "GET /v1/models/{name}",
    "GET /health",
    "GET /metrics",
)


@pytest.fixture(scope="module")
def server(trained: Callable[[str], LLM]) -> Iterator[Served]:
    with engine_of(trained("tiny-llama"), max_model_len=64) as engine, served(engine) as found:
        yield found


@pytest.fixture(scope="module")
def operations(server: Served) -> dict[str, Any]:
    """Return what schemathesis finds in the document, by method and path."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    found = [result.ok() for result in schema.get_all_operations()]
    return {f"{operation.method.upper()} {operation.path}": operation for operation in found}


def test_the_document_has_all_routes(operations: dict[str, Any]) -> None:
    assert sorted(operations) == sorted(OPERATIONS)


@pytest.mark.parametrize(
    ("name", "mode"),
    # Nothing can be wrong in a request that has no body.
    [(name, GenerationMode.POSITIVE) for name in OPERATIONS]
    + [(name, GenerationMode.NEGATIVE) for name in OPERATIONS if name.startswith("POST")],
)
def test_no_request_makes_the_server_fail(
    server: Served, operations: dict[str, Any], name: str, mode: GenerationMode
) -> None:
    operation = operations[name]
    statuses: set[int] = set()

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        drawn = case.body
        if not mode.is_negative and name in ACCEPTED:
            # Few bodies with odd values of all options are let through: each in turn may be.
            for field, value in (drawn | {"stream": True}).items():
                case.body = ACCEPTED[name] | {field: value}
                check(case)
            case.body = drawn | ({"model": "tiny"} if "model" in drawn else {})
        check(case)

    def check(case: Any) -> None:
        response = case.call()
        statuses.add(response.status_code)
        case.validate_response(response, checks=CHECKS)

    ask()
    assert max(statuses) < 500
    server.wait_until_idle()
    if not mode.is_negative and name != "GET /v1/models/{name}":
        assert 200 in statuses
