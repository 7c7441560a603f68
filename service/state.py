"""The parts of a running service, as the routes find them."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from service.admission import Admission
from service.callers import Callers
from service.engines.base import Engine
from service.keys import KeyRing
from service.metrics import Metrics
from service.pipeline import PosePipeline
from service.readiness import Readiness
from service.settings import Settings


@dataclass(frozen=True)
class Service:
    """One of each; made by :func:`service.app.create_app`, kept in ``app.state.service``."""

    settings: Settings
    engine: Engine
    pipeline: PosePipeline
    metrics: Metrics
    admission: Admission
    keys: KeyRing
    callers: Callers
    readiness: Readiness


def service_of(request: Request) -> Service:
    """The service that a request came to."""
    service: Service = request.app.state.service
    return service
