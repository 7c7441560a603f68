"""The process around the application: says where to look, drains on SIGTERM or Ctrl-C, and then exits with 0."""

from __future__ import annotations

import asyncio
import logging
import socket
from types import FrameType

import uvicorn
from rich.console import Console

from service import __version__
from service.app import create_app
from service.settings import Settings
from service.state import Service

logger = logging.getLogger(__name__)

# Longer than the idle time of common balancers (60 s), so that it is them who close and none meets a closed door.
_KEEP_ALIVE_SECONDS = 65


class PoseServer(uvicorn.Server):
    """uvicorn, with an orderly end: readiness goes off first, then the port closes, then requests finish."""

    def __init__(self, config: uvicorn.Config, service: Service, console: Console) -> None:
        super().__init__(config)
        self._service = service
        self._console = console
        self._draining = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the port and say where it is."""
        await super().startup(sockets)
        if self.started:
            self._loop = asyncio.get_running_loop()
            port = self.servers[0].sockets[0].getsockname()[1]
            self._console.print(_where_to_look(self.config.host, port), highlight=False, soft_wrap=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: stop at once. (uvicorn's own raises it again at the end, exit code 143)."""
        if self._draining or not self.started:
            self.should_exit = self.force_exit = True
            return
        self._draining = True
        self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        seconds = self._service.settings.drain_seconds
        logger.info("shutting down: %d requests in flight", self._service.admission.admitted)
        self._service.readiness.drain()
        self._loop.call_later(seconds, setattr, self, "should_exit", True)


def serve(settings: Settings) -> bool:
    """Serve until a signal ends it. False when the port could not be opened."""
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,  # service.correlation writes one line for each request, with its id
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=round(settings.shutdown_seconds),
    )
    logging.getLogger("uvicorn.error").setLevel("WARNING")
    logging.getLogger("python_multipart").setLevel("ERROR")  # it warns about every broken body; the caller is told
    server = PoseServer(config, app.state.service, Console())
    server.run()
    return server.started


def _where_to_look(host: str, port: int) -> str:
    shown = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}"
    return (
        f"[bold]tritonpose {__version__}[/bold]\n"
        f"  page  {address}/\n"
        f"  docs  {address}/docs\n"
        f"  try   curl -F image=@photo.jpg {address}/v1/pose"
    )
