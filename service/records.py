"""What is known of one request while it is answered: what its log line, its headers and its trace are made of."""

from __future__ import annotations

from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.types import Scope

from service.stages import Stages

_KEY = "tritonpose.record"


@dataclass
class RequestRecord:
    """One request's record, made by :mod:`service.correlation`, filled in by the routes.

    Attributes:
        request_id: the caller's own where it is sane, else a new one.
        trace_id: 32 hexadecimal digits of W3C Trace Context; None where the caller sent none and tracing is off.
        stages: where its time goes.
        client: name of the API key (never the key), or what else tells callers apart; None where nobody asks.
        images: pictures in it.
        people: answered.
        reason: why it was refused or failed, as the metrics call it.
        received: bytes of its body so far.
        sent: bytes of the answer's body so far.
    """

    request_id: str
    trace_id: str | None = None
    stages: Stages = field(default_factory=Stages)
    client: str | None = None
    images: int | None = None
    people: int | None = None
    reason: str | None = None
    received: int = 0
    sent: int = 0

    def put(self, scope: Scope) -> None:
        """Attach it to the request's ASGI scope."""
        scope[_KEY] = self


def record_of(request: Request) -> RequestRecord:
    """The record of a request that came through :class:`service.correlation.Correlation`."""
    record: RequestRecord = request.scope[_KEY]
    return record
