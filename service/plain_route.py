"""Routes whose functions take the request and answer a response: FastAPI has nothing to solve or to convert."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from service.errors import OutOfMemory, ServiceError
from service.problems import answer_error


class PlainRoute(APIRoute):
    """A route in the OpenAPI document like any other, called as Starlette calls one.

    Its errors become answers here: on their way through the middlewares to the application's handler a refusal under
    overload takes a fifth longer.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's way to call a route in another way."""
        endpoint: Callable[[Request], Awaitable[Response]] = self.endpoint

        async def call(request: Request) -> Response:
            try:
                return await endpoint(request)
            except ServiceError as error:
                return answer_error(error, request)
            except MemoryError:
                # What was asked for is free again: others end, and this one may come back.
                return answer_error(OutOfMemory("there is no more memory for this request now"), request)

        return call
