"""Connections for one of several processes that share a listening socket: whoever has fewer takes the next one.

By themselves uvloop and asyncio accept whatever waits in one go: of eight connections that are opened at a time, the
worker that wakes up first has eight and its neighbour none, for as long as they are kept.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

logger = logging.getLogger(__name__)

# Waited for each connection that is there already, before another is taken: time for a worker that has fewer.
_SECONDS_EACH = 0.00025
# With that many the wait grows no more, and as many are taken at a time: thousands a second, whatever is open.
_CROWD = 8
# Without descriptors or memory nothing can be taken, and the socket stays ready.
_REST_SECONDS = 0.5


class SharedListener:
    """In the place of an :class:`asyncio.Server`, for one socket; takes connections from :meth:`start` on."""

    def __init__(
        self, listener: socket.socket, protocol: Callable[[], asyncio.BaseProtocol], held: Callable[[], int]
    ) -> None:
        """Make it; nothing is taken yet.

        Args:
            listener: bound and listening.
            protocol: makes a connection's protocol.
            held: how many connections this process has.
        """
        self._listener = listener
        self._protocol = protocol
        self._held = held
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        listener.setblocking(False)

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The socket."""
        return (self._listener,)

    def start(self) -> None:
        """Take connections."""
        self._loop.add_reader(self._listener.fileno(), self._ready)

    def close(self) -> None:
        """Take no more; those that are there stay."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._listener.fileno())
            if self._timer is not None:
                self._timer.cancel()

    async def wait_closed(self) -> None:
        """Wait until those taken last have their protocols."""
        await asyncio.gather(*self._opening, return_exceptions=True)

    def _ready(self) -> None:
        self._loop.remove_reader(self._listener.fileno())
        crowd = min(_CROWD, self._held() + len(self._opening))
        if crowd:
            self._timer = self._loop.call_later(crowd * _SECONDS_EACH, self._take, max(1, crowd // _CROWD * _CROWD))
        else:
            self._take(1)

    def _take(self, most: int) -> None:
        self._timer = None
        try:
            for _ in range(most):
                connection, _address = self._listener.accept()
                connection.setblocking(False)
                task = self._loop.create_task(self._open(connection))
                self._opening.add(task)
                task.add_done_callback(self._opening.discard)
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            pass  # another worker was faster, or the caller has gone
        except OSError as error:
            logger.error("no connection can be taken: %s", error)
            self._timer = self._loop.call_later(_REST_SECONDS, self.start)  # close() cancels it
            return
        self.start()

    async def _open(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError as error:  # gone at once
            logger.debug("a connection was lost as it was taken: %s", error)
            connection.close()
