"""The process around the application: says where to look, drains on SIGTERM or Ctrl-C, and then exits with 0."""

from __future__ import annotations

import asyncio
import logging
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.allocator import return_large_blocks
from service.app import create_app
from service.connections import connection_options
from service.logs import announce
from service.settings import Settings
from service.state import Service

logger = logging.getLogger(__name__)

# Longer than the idle time of common balancers (60 s), so that it is them who close and none meets a closed door.
_KEEP_ALIVE_SECONDS = 65


class PoseServer(uvicorn.Server):
    """uvicorn, with an orderly end: readiness goes off first, then the port closes, then requests finish."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._draining = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the port and say where it is."""
        await super().startup(sockets)
        if self.started:
            self._loop = asyncio.get_running_loop()
            if self.servers:
                announce(self._service.settings, self.servers[0].sockets[0].getsockname()[1])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: stop at once. (uvicorn's own raises it again at the end, exit code 143)."""
        if self._draining or not self.started:
            self.should_exit = self.force_exit = True
            return
        self._draining = True
        self._loop.call_soon_threadsafe(self.drain)

    def drain(self) -> None:
        """Call the service unready, go on answering for a while, then finish what is in flight and end."""
        self._draining = True
        seconds = self._service.settings.drain_seconds
        logger.info("shutting down: %d requests in flight", self._service.admission.admitted)
        self._service.readiness.drain()
        self._loop.call_later(seconds, setattr, self, "should_exit", True)


def serve(settings: Settings) -> bool:
    """Serve until a signal ends it, in this process. False when the port could not be opened."""
    return_large_blocks()
    app = create_app(settings)
    server = PoseServer(uvicorn_config(app, settings), app.state.service)
    server.run()
    return server.started


def uvicorn_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """uvicorn's settings for the application."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,  # service.correlation writes one line for each request, with its id
        server_header=False,
        **connection_options(settings, app.state.service.metrics.rejected),
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=round(settings.shutdown_seconds),
    )
