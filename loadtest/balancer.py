"""A balancer before several instances: asks each whether it is ready, and hands requests to those that are, in turn.

As small as can be, but of the kind that stands before services: it keeps its connections to the instances, sends a
request again only when it was never sent (nobody listened), and answers 502 when an instance breaks off.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Sequence
from http import HTTPStatus
from types import TracebackType

from loadtest.wire import ConnectionLost, NoConnection, OutOfPatience, Reply, Wire, request_bytes

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_ASK_READY = request_bytes("/v1/health/ready", method="GET")
_PATIENCE = 120.0
_READY_PATIENCE = 5.0
_LONGEST_HEAD = 2**16


class Balancer:
    """Listens on a free port of the loopback; an async context manager.

    Attributes:
        url: where it listens.
        ready: which of the instances take requests, by their place.
        sent: requests handed to each.
        broken: requests that an instance broke off, in words.
    """

    def __init__(self, urls: Sequence[str], *, every: float = 0.1) -> None:
        """``every``: seconds between two questions for readiness."""
        self._wires = [Wire(url) for url in urls]
        self._every = every
        self._turn = 0
        self._tasks: list[asyncio.Task[None]] = []
        self.ready = [False] * len(urls)
        self.sent = [0] * len(urls)
        self.broken: list[str] = []
        self.url = ""

    @property
    def resent(self) -> int:
        """Requests that lost a kept connection and went over a new one; 0 where instances drain in order."""
        return sum(wire.resent for wire in self._wires)

    async def __aenter__(self) -> Balancer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_LONGEST_HEAD)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self._tasks = [asyncio.ensure_future(self._watch(place)) for place in range(len(self._wires))]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for wire in self._wires:
            wire.close()

    async def _watch(self, place: int) -> None:
        while True:
            try:
                # Over a connection of its own: a kept one may be to a process that is about to end.
                reply = await self._wires[place].ask(_ASK_READY, patience=_READY_PATIENCE, fresh=True)
                self.ready[place] = reply.status == 200
            except (ConnectionLost, OutOfPatience):
                self.ready[place] = False
            await asyncio.sleep(self._every)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = _LENGTH.search(head)
                body = await reader.readexactly(int(length[1])) if length else b""
                writer.write(_answer(await self._forward(head + body)))
                await writer.drain()
        writer.close()

    async def _forward(self, request: bytes) -> Reply:
        for place in self._order():
            self.sent[place] += 1
            try:
                return await self._wires[place].ask(request, patience=_PATIENCE)
            except NoConnection:
                self.ready[place] = False
                self.sent[place] -= 1
            except (ConnectionLost, OutOfPatience) as error:
                self.broken.append(f"instance {place}: {error}")
                return Reply(502, {}, b"the instance broke off", 0.0)
        return Reply(503, {"retry-after": "1"}, b"no instance is ready", 0.0)

    def _order(self) -> list[int]:
        """Instances that are ready, each request beginning with another one."""
        self._turn += 1
        count = len(self._wires)
        places = [(self._turn + offset) % count for offset in range(count)]
        return [place for place in places if self.ready[place]]


def _answer(reply: Reply) -> bytes:
    # What is said about one connection is not true of the other.
    kept = {n: v for n, v in reply.headers.items() if n not in ("connection", "transfer-encoding", "content-length")}
    lines = "".join(f"{name}: {value}\r\n" for name, value in kept.items())
    status = f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase if reply.status != 499 else 'Gone'}"
    return f"{status}\r\ncontent-length: {len(reply.body)}\r\n{lines}\r\n".encode("latin-1") + reply.body
