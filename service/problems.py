"""Errors as problem+json (RFC 9457): every 4xx and 5xx of the service has this one shape."""

from __future__ import annotations

import http
import inspect
import logging
import math
from urllib.parse import quote

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service import errors
from service.deadlines import HEADER as TIMEOUT_HEADER
from service.deadlines import read_timeout
from service.errors import (
    DeadlineExceeded,
    EngineUnavailable,
    InvalidOption,
    MethodNotAllowed,
    NotFound,
    OutOfMemory,
    ServiceError,
)
from service.records import record_of
from service.settings import Settings
from service.state import service_of

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
# The problem types are addresses in the service: opening one in a browser explains it.
TYPE_PREFIX = "/problems/"
# Starting takes a second or two; a lost engine is tried again every two.
_RETRY_SECONDS = 2.0
# Of the default deadline: who gives less than a tenth of it cannot make the service look as if it failed. Anybody can
# ask for an answer within a millisecond, and alerts wake people.
_HURRY = 0.1


def problem_document(error: ServiceError, instance: str | None = None, request_id: str | None = None) -> bytes:
    """An error as JSON (RFC 9457)."""
    document = {
        "type": TYPE_PREFIX + error.type,
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "instance": instance,
        "image_index": error.image_index,
        "request_id": request_id,
    }
    return to_json({name: value for name, value in document.items() if value is not None})


def problem(error: ServiceError, request: Request) -> Response:
    """The answer for an error, counted, with ``Retry-After`` where waiting helps."""
    service, record = service_of(request), record_of(request)
    record.reason = "caller-deadline" if _in_a_hurry(error, request, service.settings) else error.reason
    service.metrics.rejected(record.reason)
    body = problem_document(error, request.scope["path"], record.request_id)
    headers = {}
    retry_after = error.retry_after
    if retry_after is None and isinstance(error, (EngineUnavailable, OutOfMemory)):
        retry_after = _RETRY_SECONDS
    if retry_after is not None:
        headers["Retry-After"] = str(math.ceil(retry_after))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(body, error.status, headers, MEDIA_TYPE)


def _in_a_hurry(error: ServiceError, request: Request, settings: Settings) -> bool:
    """Whether a caller gave so little time that its being over says nothing of the service."""
    header = request.headers.get(TIMEOUT_HEADER)
    if header is None or not isinstance(error, DeadlineExceeded):
        return False
    try:
        return read_timeout(header, settings) < _HURRY * settings.deadline_seconds
    except InvalidOption:  # a route that does not read it
        return False


def install(app: FastAPI) -> None:
    """Answer every error of the application as a problem; unexpected ones are :mod:`service.correlation`'s."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(RequestValidationError, _validation_error)


def problem_types() -> dict[str, tuple[str, int, str]]:
    """Every problem type: its title, status and one sentence."""
    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, ServiceError)]
    return {kind.type: (kind.title, kind.status, inspect.getdoc(kind) or "") for kind in kinds}


def answer_error(error: ServiceError, request: Request) -> Response:
    """The answer for an error; the service's own go to the log too."""
    if error.status >= 500:
        known = {"request_id": record_of(request).request_id}
        path = quote(request.scope["path"])
        logger.warning("%s %s: %s", request.method, path, error.detail, extra={"fields": known})
    return problem(error, request)


async def _service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return answer_error(error, request)


async def _http_exception(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    refused: ServiceError
    if error.status_code == 404:
        refused = NotFound(f"there is nothing at {request.scope['path']}")
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "other methods")
        refused = MethodNotAllowed(f"{request.method} {request.scope['path']}: it takes {allowed}")
    else:
        refused = ServiceError(str(error.detail))
        refused.status = error.status_code
        refused.title = http.HTTPStatus(error.status_code).phrase
        refused.type = refused.title.lower().replace(" ", "-")
    answer = problem(refused, request)
    answer.headers.update(error.headers or {})  # Allow, for a wrong method
    return answer


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    details = [f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors()]
    return problem(InvalidOption("; ".join(details)), request)
