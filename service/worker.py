"""One of several processes that serve one port: opens it when told, reports to its supervisor, ends when told.

It is told through a pipe. Signals would come twice: Ctrl-C goes to all processes of a terminal, and systemd sends
SIGTERM to all of a unit. So a worker waits a moment after a SIGTERM for what its supervisor says.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from multiprocessing.connection import Connection
from types import FrameType

import uvicorn

from service.accepting import SharedListener
from service.allocator import return_large_blocks
from service.app import create_app
from service.logs import set_up
from service.server import PoseServer, uvicorn_config
from service.settings import Settings
from service.state import Service
from service.supervisor import DRAIN, OPEN, RETIRE, RETIRING

logger = logging.getLogger(__name__)

_BEAT_SECONDS = 1.0
# After SIGTERM: time for the supervisor, which may have got it as well, to say that all are to drain.
_HEED_SECONDS = 0.5
# Time for callers to see `Connection: close` on connections that a retiring worker still has.
_MIGRATE_SECONDS = 2.0


def work(settings: Settings, listener: socket.socket, pipe: Connection) -> None:
    """Serve ``listener`` until told to end, or the supervisor is gone.

    Args:
        settings: this worker's share.
        listener: bound and listening; shared with the other workers.
        pipe: to the supervisor, which gets the state of the service every second.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_up(settings)
    return_large_blocks()
    app = create_app(settings)
    WorkerServer(uvicorn_config(app, settings), app.state.service, listener, pipe).run(sockets=[])


class WorkerServer(PoseServer):
    """A server whose port opens on command."""

    def __init__(self, config: uvicorn.Config, service: Service, listener: socket.socket, pipe: Connection) -> None:
        super().__init__(config, service)
        self._listener = listener
        self._pipe = pipe
        self._leaving: asyncio.TimerHandle | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, with the port closed."""
        await super().startup(sockets)
        self._loop.add_reader(self._pipe.fileno(), self._told)
        self._beats = self._loop.create_task(self._beat())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what is in flight; the supervisor hears nothing more."""
        try:
            await super().shutdown(sockets)
        finally:
            self._beats.cancel()
            self._loop.remove_reader(self._pipe.fileno())

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM for this worker alone: it retires, and the supervisor starts another."""
        if sig == signal.SIGTERM and self.started:
            self._loop.call_soon_threadsafe(self._leave_soon)

    def _leave_soon(self) -> None:
        if self._leaving is None and not self._draining:
            self._leaving = self._loop.call_later(_HEED_SECONDS, self._leave)

    def _leave(self) -> None:
        if not self._draining:
            with contextlib.suppress(OSError):
                self._pipe.send_bytes(RETIRING)
            self._retire()

    async def _beat(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._pipe.send_bytes(self._service.readiness.state().encode())
                await asyncio.sleep(_BEAT_SECONDS)

    def _told(self) -> None:
        try:
            command = self._pipe.recv_bytes()
        except (EOFError, OSError):
            logger.error("the supervisor is gone")
            self._loop.remove_reader(self._pipe.fileno())
            command = DRAIN
        if command == OPEN:
            self._open()
        elif command == RETIRE:
            self._retire()
        elif not self._draining:
            self.drain()
        else:  # retiring, and now there is no other to go to
            self._service.readiness.drain()

    def _open(self) -> None:
        """Take connections from now on, with uvicorn's own protocol."""

        def protocol() -> asyncio.Protocol:
            made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            )
            return made

        shared = SharedListener(self._listener, protocol, lambda: len(self.server_state.connections))
        shared.start()
        self.servers.append(shared)  # type: ignore[arg-type]

    def _retire(self) -> None:
        """Take no new connections, which the other workers do, and end those there are with their next answer."""
        if self._draining:
            return
        self._draining = True
        for server in self.servers:
            server.close()
        self._service.readiness.closing = True
        seconds = max(_MIGRATE_SECONDS, self._service.settings.drain_seconds)
        logger.info("retiring: %d requests in flight", self._service.admission.admitted)
        self._loop.call_later(seconds, setattr, self, "should_exit", True)
