"""``python -m loadtest.leaky --port 9000 --leak 20000``: the service with a leak planted around it.

Every pose request leaves that many bytes behind, as a list that somebody forgot to empty would. It is what
``loadtest.soak`` is tried on: a check of memory that lets this pass is worth nothing. The service itself has no such
switch.
"""

from __future__ import annotations

from typing import Annotated

import typer
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from service.app import create_app
from service.settings import Settings

_forgotten: list[bytearray] = []


class Leak:
    """ASGI middleware that keeps something of each pose request for ever."""

    def __init__(self, app: ASGIApp, size: int) -> None:
        self._app, self._size = app, size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Leak, then serve."""
        if scope["type"] == "http" and scope["path"] == "/v1/pose":
            # Written, not only asked for: untouched pages are not resident.
            _forgotten.append(bytearray(b"leak" * (self._size // 4)))
        await self._app(scope, receive, send)


def main(
    port: Annotated[int, typer.Option(help="Port on the loopback.")],
    leak: Annotated[int, typer.Option(min=4, help="Bytes that each pose request leaves behind.")] = 20_000,
) -> None:
    """Serve and leak; settings are the service's variables."""
    app = Leak(create_app(Settings(port=port)), leak)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    typer.run(main)
