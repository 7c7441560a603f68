"""The way to a route for which a router and FastAPI have nothing to do: a look at method and path, and a call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import OutOfMemory, ServiceError
from service.problems import answer_error


class DirectRoute:
    """ASGI middleware: requests for one route go to its function, everything else goes on.

    Router, stacks and handlers of errors take a tenth of the event loop's time for a picture, and a third of a
    refusal's under overload. The route stays in the application for the OpenAPI document and for other methods.
    """

    def __init__(self, app: ASGIApp, route: APIRoute) -> None:
        """``route``: without parameters in its path; its function takes the request and answers a response."""
        self._app = app
        self._route = route
        self._path = route.path
        self._methods = frozenset(route.methods or ())
        self._endpoint: Callable[[Request], Awaitable[Response]] = route.endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] not in self._methods or not self._is_here(scope):
            await self._app(scope, receive, send)
            return
        scope["route"] = self._route
        request = Request(scope, receive, send)
        try:
            response = await self._endpoint(request)
        except ServiceError as error:
            response = answer_error(error, request)
        except MemoryError:
            # What was asked for is free again: others end, and this one may come back.
            response = answer_error(OutOfMemory("there is no more memory for this request now"), request)
        await response(scope, receive, send)

    def _is_here(self, scope: Scope) -> bool:
        path: str = scope["path"]
        return path == self._path or path == scope.get("root_path", "") + self._path
