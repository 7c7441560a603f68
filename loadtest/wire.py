"""HTTP/1.1 over asyncio with next to nothing around it, for load that must not take the cores from the service.

A request is bytes that were made before, an answer is parsed by httptools, and uvloop carries both.
``python -m loadtest.overload`` prints what a request costs the client's process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, cast
from urllib.parse import urlsplit

import httptools


class ConnectionLost(Exception):
    """The server closed, reset or refused the connection before the answer was whole."""


class NoConnection(ConnectionLost):
    """Nobody listens: the request was not sent."""


class OutOfPatience(Exception):
    """No answer came within the time that the caller allowed; the connection was torn down."""


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        status: HTTP status.
        headers: by name in lower case.
        body: whole body.
        seconds: from the call to the last byte.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float


def request_bytes(
    path: str,
    body: bytes = b"",
    content_type: str | None = None,
    *,
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """A whole request, ready to be sent; ``Content-Length`` is the body's unless ``headers`` say another."""
    lines = {"Host": "loadtest", "Content-Length": str(len(body)), **(headers or {})}
    if content_type is not None:
        lines["Content-Type"] = content_type
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return head.encode("latin-1") + b"\r\n" + body


@dataclass
class _Parsing:
    """What has come of the answer so far: httptools' callbacks."""

    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)
    complete: bool = False
    keep_alive: bool = False
    parser: Any = None

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        self.pieces.append(data)

    def on_message_complete(self) -> None:
        self.complete = True
        self.keep_alive = self.parser.should_keep_alive()  # afterwards it speaks of the next message


class _Connection(asyncio.Protocol):
    """One connection with one request in flight."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.open = False
        self.reusable = True
        self._answer: asyncio.Future[tuple[int, dict[str, str], bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.open = cast(asyncio.Transport, transport), True  # uvloop's is no subclass of it

    def begin(self) -> asyncio.Future[tuple[int, dict[str, str], bytes]]:
        """Expect the next answer."""
        self._parsing = _Parsing()
        self._parser: Any = httptools.HttpResponseParser(self._parsing)
        self._parsing.parser = self._parser
        self._answer = asyncio.get_running_loop().create_future()
        return self._answer

    def data_received(self, data: bytes) -> None:
        waiting = self._answer
        if waiting is None or waiting.done():
            self.close()  # nobody asked: a server that talks unasked is out of step
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"not HTTP: {error}")
            self.close()
            return
        if self._parsing.complete:
            self.reusable = self._parsing.keep_alive
            self._parsing.parser = None
            status = self._parser.get_status_code()
            waiting.set_result((status, self._parsing.headers, b"".join(self._parsing.pieces)))

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._fail(repr(exc) if exc else "closed by the server")

    def _fail(self, reason: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionLost(reason))

    def close(self) -> None:
        """Hang up at once, whatever is under way."""
        self.open = False
        if self.transport is not None:
            self.transport.abort()


class Wire:
    """Connections to one server; a request takes one that is idle, or opens one. An async context manager.

    Attributes:
        opened: connections made so far.
        resent: requests that lost a connection which had been used before (a server may close an idle one just then),
            and went over a new one. Where none may be lost, this has to be 0.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._tls = parts.scheme == "https"
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or (443 if self._tls else 80)
        self._idle: list[_Connection] = []
        self.opened = self.resent = 0

    async def __aenter__(self) -> Wire:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop().close()

    async def ask(self, request: bytes, *, patience: float = 60.0, fresh: bool = False) -> Reply:
        """Send a request and wait for its answer.

        Args:
            request: as :func:`request_bytes` makes it.
            patience: seconds; after these the connection is reset, as by a caller who gave up.
            fresh: over a connection of its own.

        Raises:
            OutOfPatience, ConnectionLost.
        """
        started = time.perf_counter()
        while not fresh and self._idle:
            connection = self._idle.pop()
            if not connection.open:
                continue
            try:
                return await self._ask(connection, [request], 0.0, started, patience, keep=True)
            except ConnectionLost:
                self.resent += 1
                break
        return await self._ask(await self._connect(), [request], 0.0, started, patience, keep=not fresh)

    async def trickle(self, request: bytes, pieces: int, pause: float, *, patience: float = 60.0) -> Reply:
        """Send a request in that many pieces with a pause before each but the first. Raises as :meth:`ask`."""
        started = time.perf_counter()
        length = max(1, -(-len(request) // pieces))
        parts = [request[start : start + length] for start in range(0, len(request), length)]
        return await self._ask(await self._connect(), parts, pause, started, patience, keep=False)

    async def abandon(self, request: bytes, share: float, pause: float) -> None:
        """Send the first part of a request, wait, and hang up. Raises ConnectionLost when nobody listens."""
        connection = await self._connect()
        try:
            assert connection.transport is not None
            connection.begin().add_done_callback(_look)
            connection.transport.write(request[: max(1, int(share * len(request)))])
            await asyncio.sleep(pause)
        finally:
            connection.close()

    async def _connect(self) -> _Connection:
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                _Connection, self._host, self._port, ssl=self._tls or None
            )
        except OSError as error:
            raise NoConnection(f"no connection: {error!r}") from None
        self.opened += 1
        return connection

    async def _ask(
        self,
        connection: _Connection,
        pieces: Sequence[bytes],
        pause: float,
        started: float,
        patience: float,
        *,
        keep: bool,
    ) -> Reply:
        answer = connection.begin()
        assert connection.transport is not None
        left = patience - (time.perf_counter() - started)
        alarm = asyncio.get_running_loop().call_later(max(0.0, left), _give_up, answer)
        try:
            connection.transport.write(pieces[0])
            for piece in pieces[1:]:
                await asyncio.wait((answer,), timeout=pause)
                if answer.done():  # told before all was sent
                    break
                connection.transport.write(piece)
            status, headers, body = await answer
        except BaseException:
            answer.cancel()
            answer.add_done_callback(_look)
            connection.close()
            raise
        finally:
            alarm.cancel()
        if keep and connection.reusable and connection.open:
            self._idle.append(connection)
        else:
            connection.close()
        return Reply(status, headers, body, time.perf_counter() - started)


def _give_up(answer: asyncio.Future[Any]) -> None:
    if not answer.done():
        answer.set_exception(OutOfPatience("no answer in time"))


def _look(answer: asyncio.Future[Any]) -> None:
    """Look at an outcome that nobody waits for, or asyncio complains about it."""
    if not answer.cancelled():
        answer.exception()
