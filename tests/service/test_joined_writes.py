"""Answers in one piece: nothing may be lost, doubled or sent in another order."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from service.joined_writes import JoinedWrites


class Counted(asyncio.Transport):
    """A real transport behind it; writes are counted."""

    def __init__(self, real: asyncio.Transport) -> None:
        self.real = real
        self.writes: list[bytes] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))
        self.real.write(data)

    def writelines(self, pieces: object) -> None:
        self.write(b"".join(pieces))  # type: ignore[call-overload]

    def is_closing(self) -> bool:
        return self.real.is_closing()

    def close(self) -> None:
        self.real.close()

    def abort(self) -> None:
        self.real.abort()

    def get_write_buffer_size(self) -> int:
        return self.real.get_write_buffer_size()


@pytest.fixture
async def pair() -> AsyncIterator[tuple[JoinedWrites, Counted, asyncio.StreamReader]]:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=theirs)
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
    counted = Counted(transport)
    yield JoinedWrites(counted, asyncio.get_running_loop()), counted, reader
    transport.abort()
    writer.close()


async def test_head_and_body_are_one_write(pair: tuple[JoinedWrites, Counted, asyncio.StreamReader]) -> None:
    joined, counted, reader = pair
    joined.write(b"head ")
    assert joined.get_write_buffer_size() == 5 and not counted.writes
    joined.write(b"body")
    assert counted.writes == [b"head body"]
    joined.write(b"next")
    await asyncio.sleep(0)
    assert counted.writes[1:] == [b"next"]
    assert await reader.readexactly(13) == b"head bodynext"


async def test_closing_sends_what_is_held(pair: tuple[JoinedWrites, Counted, asyncio.StreamReader]) -> None:
    joined, _, reader = pair
    for piece in (b"a", b"b", b"c"):
        joined.write(piece)
    joined.close()
    assert joined.is_closing()
    assert await reader.read() == b"abc"


async def test_nothing_is_written_to_what_was_reset(
    pair: tuple[JoinedWrites, Counted, asyncio.StreamReader],
) -> None:
    joined, counted, reader = pair
    joined.write(b"late")
    joined.abort()
    await asyncio.sleep(0.01)
    assert not counted.writes
    assert await reader.read() == b""
