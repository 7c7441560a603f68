"""Head and body of an answer leave in one piece: uvicorn writes one after the other, and each wakes the caller."""

from __future__ import annotations

import asyncio
from typing import Any


class JoinedWrites:
    """A transport that holds a write back until the next one, at most for one turn of the event loop.

    On a machine that callers and networks share, the second piece takes a core from a network once more; elsewhere it
    is a packet of its own.
    """

    __slots__ = ("_held", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""

    def __getattr__(self, name: str) -> Any:
        """Everything else is the transport's own."""
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send with what is held, or hold."""
        if self._held:
            held, self._held = self._held, b""
            self._transport.writelines((held, data))
        elif data:
            self._held = data
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what is held."""
        if self._held:
            held, self._held = self._held, b""
            if not self._transport.is_closing():
                self._transport.write(held)

    def close(self) -> None:
        """Send what is held, then close."""
        self.flush()
        self._transport.close()

    def get_write_buffer_size(self) -> int:
        """Bytes that have not left."""
        return self._transport.get_write_buffer_size() + len(self._held)
