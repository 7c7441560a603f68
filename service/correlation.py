"""The outermost layer: an id for each request, its log line, metrics and trace, and an answer for the unexpected."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import EngineUnavailable, ServiceError
from service.metrics import Metrics
from service.problems import problem
from service.records import RequestRecord
from service.tracing import RequestTrace, Tracing, trace_id_of

logger = logging.getLogger(__name__)

_HEADER = "X-Request-ID"
# An id from outside goes into logs and headers: letters, digits and a few marks, or a new one is made.
_SANE = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
# Asked every few seconds by machines: no traces, and log lines only when they fail.
_WATCHERS = ("/v1/health/", "/metrics")


class Correlation:
    """ASGI middleware around the application."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        tracing: Tracing | None = None,
        closing: Callable[[], bool] = lambda: False,
    ) -> None:
        """``closing``: whether connections are to end with their next answer, because this process is about to."""
        self._app = app
        self._metrics = metrics
        self._tracing = tracing
        self._closing = closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(_HEADER, "")
        record = RequestRecord(given if _SANE.fullmatch(given) else os.urandom(16).hex(), trace_id_of(headers))
        record.put(scope)
        scope["request_id"] = record.request_id
        trace: RequestTrace | None = None
        if self._tracing is not None and not scope["path"].startswith(_WATCHERS):
            trace = self._tracing.begin(scope["method"], headers)
            record.trace_id = trace.trace_id
            record.stages.trace = trace.stages
        started, answered, status = time.perf_counter(), 0.0, 0

        async def receive_counted() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                record.received += len(message.get("body", b""))
            return message

        async def send_with_id(message: Message) -> None:
            nonlocal answered, status
            if message["type"] == "http.response.start":
                status, answered = message["status"], time.perf_counter()
                answer = MutableHeaders(scope=message)
                answer[_HEADER] = record.request_id
                if record.stages.seconds:
                    record.stages.add("total", answered - started)
                    answer["Server-Timing"] = record.stages.server_timing()
                if self._closing():
                    answer["Connection"] = "close"
            elif message["type"] == "http.response.body":
                record.sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive_counted, send_with_id)
        except Exception:
            known = {"request_id": record.request_id}
            what = (record.request_id, scope["method"], _path(scope))
            logger.exception("request %s: %s %s failed", *what, extra={"fields": known})
            if status:
                raise  # half an answer is out: only closing the connection can tell
            error = ServiceError("an error of the service, not of the request; the log has it under the request id")
            await problem(error, Request(scope))(scope, receive_counted, send_with_id)
        except asyncio.CancelledError:
            if status or not self._closing():
                raise
            # Its time to finish at the end of the process is up: uvicorn would call that a plain 500.
            leaving = EngineUnavailable("the service is shutting down, and this request took too long to wait for")
            await problem(leaving, Request(scope))(scope, receive_counted, send_with_id)
        finally:
            ended = time.perf_counter()
            # Callers take their time to send and to read, which says nothing of the service.
            own = (answered or ended) - started - record.stages.seconds.get("read", 0.0)
            self._record(scope, status, ended - started, own, record, trace)

    def _record(
        self, scope: Scope, status: int, seconds: float, own: float, record: RequestRecord, trace: RequestTrace | None
    ) -> None:
        # Routes, not paths: anyone can make up paths, and each would be a time series of its own.
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.ended(route, status, own, record.stages)
        level = logging.DEBUG if status < 400 and not route.startswith("/v1/pose") else logging.INFO
        if trace is None and not logger.isEnabledFor(level):
            return
        fields = _fields(scope, route, status, seconds, record)
        if trace is not None:
            trace.end(f"{scope['method']} {route}" if route != "other" else scope["method"], fields)
        if logger.isEnabledFor(level):
            logger.log(
                level,
                "%s %s %d %.1f ms %s",
                *(scope["method"], _path(scope), status, seconds * 1e3, record.request_id),
                extra={"fields": fields},
            )


def _path(scope: Scope) -> str:
    """The path as callers write it: one that was decoded can hold line ends, and forge lines of a log."""
    return quote(scope["path"])


def _fields(scope: Scope, route: str, status: int, seconds: float, record: RequestRecord) -> dict[str, Any]:
    """What a log line and a span say of a request; what is not known is left out."""
    fields = {
        "request_id": record.request_id,
        "trace_id": record.trace_id,
        "method": scope["method"],
        "path": _path(scope),
        "route": route,
        "status": status,
        "milliseconds": round(seconds * 1e3, 3),
        "client": record.client,
        "images": record.images,
        "people": record.people,
        "reason": record.reason,
        "bytes_received": record.received,
        "bytes_sent": record.sent,
        "stages": record.stages.milliseconds() or None,
    }
    return {name: value for name, value in fields.items() if value is not None}
