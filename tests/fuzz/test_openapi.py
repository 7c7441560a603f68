"""Requests made from the API's own description, right and wrong ones: it must describe what the service does.

Were this to fail, a client generated from /openapi.json would meet answers that it was not told of, or a 500.
"""

from __future__ import annotations

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

from loadtest.server import ServiceProcess
from service.app import create_app
from service.engines.fake import FakeEngine

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
# The document does not depend on the engine: it is made here, and the requests go to the real service.
SCHEMA = schemathesis.openapi.from_dict(create_app(engine=FakeEngine({})).openapi())
OPERATIONS = {found.ok().label: found.ok() for found in SCHEMA.get_all_operations()}


def test_every_route_is_described() -> None:
    assert {"POST /v1/pose", "GET /v1/models", "GET /v1/models/{name}", "GET /v1/health/ready"} <= set(OPERATIONS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("label", "mode"),
    # The other routes have nothing that could be wrong.
    [*((label, GenerationMode.POSITIVE) for label in OPERATIONS), ("POST /v1/pose", GenerationMode.NEGATIVE)],
    ids=str,
)
def test_the_service_does_what_its_document_says(service: ServiceProcess, label: str, mode: GenerationMode) -> None:
    @given(case=OPERATIONS[label].as_strategy(generation_mode=mode))
    @settings(
        max_examples=30 if label == "POST /v1/pose" else 10,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any) -> None:
        case.call_and_validate(base_url=service.url, checks=CHECKS, timeout=60)

    ask()
