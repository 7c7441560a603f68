"""The outermost layer: an id for each request, its log line and metrics, and an answer for the unexpected."""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ServiceError
from service.metrics import Metrics
from service.problems import problem

logger = logging.getLogger(__name__)

_HEADER = "X-Request-ID"
# An id from outside goes into logs and headers: letters, digits and a few marks, or a new one is made.
_SANE = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


class Correlation:
    """ASGI middleware around the application."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(_HEADER, "")
        request_id = given if _SANE.fullmatch(given) else uuid.uuid4().hex
        scope["request_id"] = request_id
        started, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[_HEADER] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            logger.exception("request %s: %s %s failed", request_id, scope["method"], scope["path"])
            if status:
                raise  # half an answer is out: only closing the connection can tell
            error = ServiceError("an error of the service, not of the request; the log has it under the request id")
            await problem(error, Request(scope))(scope, receive, send_with_id)
        finally:
            self._record(scope, status, time.perf_counter() - started, request_id)

    def _record(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        # Routes, not paths: anyone can make up paths, and each would be a time series of its own.
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.duration.labels(route).observe(seconds)
        level = logging.DEBUG if status < 400 and not route.startswith("/v1/pose") else logging.INFO
        if logger.isEnabledFor(level):
            logger.log(level, "%s %s %d %.1f ms %s", scope["method"], scope["path"], status, seconds * 1e3, request_id)
