"""The asyncio client. One that loses, mixes up or invents answers makes every load test after it worthless."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from loadtest.wire import ConnectionLost, NoConnection, OutOfPatience, Wire, request_bytes

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Name: yes\r\n\r\nok"


@asynccontextmanager
async def server(handle: Handler) -> AsyncIterator[str]:
    """A server that does what ``handle`` does with each connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client is gone, or the test is over
        finally:
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()


async def read(reader: asyncio.StreamReader) -> bytes:
    """One request's body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return await reader.readexactly(length)


def test_a_request_is_http() -> None:
    request = request_bytes("/v1/pose?x=1", b"abc", "image/png", headers={"Authorization": "Bearer k"})
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[0] == b"POST /v1/pose?x=1 HTTP/1.1"
    assert {b"Content-Length: 3", b"Content-Type: image/png", b"Authorization: Bearer k"} <= set(head.split(b"\r\n"))
    assert body == b"abc"


async def test_answers_come_back_over_connections_that_are_kept() -> None:
    bodies = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            bodies.append(await read(reader))
            writer.write(OK[:30])  # in two pieces: an answer may arrive in any
            await writer.drain()
            writer.write(OK[30:])

    async with server(handle) as url, Wire(url) as wire:
        for number in range(3):
            reply = await wire.ask(request_bytes("/", b"%d" % number))
            assert (reply.status, reply.body, reply.headers["x-name"]) == (200, b"ok", "yes")
        assert wire.opened == 1
        await wire.ask(request_bytes("/", b"3"), fresh=True)
        assert wire.opened == 2
    assert bodies == [b"0", b"1", b"2", b"3"]


async def test_chunked_answers_and_answers_before_the_whole_body() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 No\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        await writer.drain()
        await reader.read(10)

    async with server(handle) as url, Wire(url) as wire:
        reply = await wire.trickle(request_bytes("/", bytes(1000)), pieces=20, pause=0.05)
        assert (reply.status, reply.body) == (413, b"abc")
        assert reply.seconds < 0.9  # not after all twenty pieces


async def test_patience_ends_and_the_server_sees_it() -> None:
    gone = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        try:
            await reader.read(1)  # nothing more comes but the end
        finally:
            gone.set()

    async with server(handle) as url, Wire(url) as wire:
        began = time.perf_counter()
        with pytest.raises(OutOfPatience):
            await wire.ask(request_bytes("/"), patience=0.1)
        assert time.perf_counter() - began < 2
        await asyncio.wait_for(gone.wait(), 5)


async def test_lost_connections_are_told() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        writer.write(OK[:-1])  # an answer that lacks its last byte

    async with server(handle) as url, Wire(url) as wire:
        with pytest.raises(ConnectionLost):
            await wire.ask(request_bytes("/"))
    with pytest.raises(NoConnection):
        await Wire(url).ask(request_bytes("/"))


async def test_an_idle_connection_that_was_closed_is_replaced_and_counted() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        writer.write(OK)
        await writer.drain()
        await reader.read(1)  # the next request begins, and meets a closed door

    async with server(handle) as url, Wire(url) as wire:
        await wire.ask(request_bytes("/"))
        reply = await wire.ask(request_bytes("/"))
        assert (reply.status, wire.opened, wire.resent) == (200, 2, 1)


async def test_an_abandoned_request_is_never_whole() -> None:
    came: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(1000):
                came.append(piece)
        except ConnectionError:
            pass

    request = request_bytes("/", bytes(900))
    async with server(handle) as url, Wire(url) as wire:
        await wire.abandon(request, share=0.5, pause=0.05)
        await asyncio.sleep(0.1)
    assert 0 < len(b"".join(came)) <= len(request) // 2 + 1
