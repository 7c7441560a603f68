"""Workers that share a port: if one of them takes all connections, the others' cores have nothing to do."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator

import pytest

from service.accepting import SharedListener


class Worker:
    """Connections of one process; answers what it gets."""

    def __init__(self, listener: socket.socket) -> None:
        self.connections: set[asyncio.BaseTransport] = set()
        self.shared = SharedListener(listener, lambda: Echo(self), lambda: len(self.connections))
        self.shared.start()


class Echo(asyncio.Protocol):
    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.worker.connections.add(transport)

    def data_received(self, data: bytes) -> None:
        assert isinstance(self.transport, asyncio.Transport)
        self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.worker.connections.discard(self.transport)


@pytest.fixture
async def pair() -> AsyncIterator[tuple[list[Worker], int]]:
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    workers = [Worker(listener.dup()) for _ in range(2)]
    yield workers, listener.getsockname()[1]
    for worker in workers:
        worker.shared.close()
        await worker.shared.wait_closed()
        for transport in list(worker.connections):
            transport.close()
        worker.shared.sockets[0].close()
    listener.close()


async def connect(port: int, number: int) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    return list(await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(number))))


async def ask(connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> None:
    for number, (reader, writer) in enumerate(connections):
        writer.write(b"%04d" % number)
        assert await asyncio.wait_for(reader.readexactly(4), 10) == b"%04d" % number


@pytest.mark.parametrize("number", [8, 60])
async def test_connections_that_come_together_are_shared(pair: tuple[list[Worker], int], number: int) -> None:
    workers, port = pair
    connections = await connect(port, number)
    await ask(connections)
    counts = sorted(len(worker.connections) for worker in workers)
    assert sum(counts) == number
    assert counts[0] >= number // 4, counts
    for _, writer in connections:
        writer.close()


async def test_one_that_is_closed_leaves_all_to_the_other(pair: tuple[list[Worker], int]) -> None:
    workers, port = pair
    before = await connect(port, 6)
    await ask(before)
    stays = len(workers[0].connections)
    workers[0].shared.close()
    after = await connect(port, 20)
    await ask(after)
    await ask(before)  # what it has taken it keeps
    assert len(workers[0].connections) == stays
    assert len(workers[1].connections) == 26 - stays
    for _, writer in (*before, *after):
        writer.close()


async def test_a_socket_that_cannot_be_accepted_from_is_looked_at_again(
    pair: tuple[list[Worker], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of descriptors: the loop must not spin, and the connections that wait are taken afterwards."""
    workers, port = pair
    workers[1].shared.close()
    tried = 0

    class Full:
        def __init__(self, real: socket.socket) -> None:
            self.real = real

        def fileno(self) -> int:
            return self.real.fileno()

        def accept(self) -> object:
            nonlocal tried
            tried += 1
            raise OSError(errno.EMFILE, "Too many open files")

    real = workers[0].shared._listener
    monkeypatch.setattr(workers[0].shared, "_listener", Full(real))
    connections = await connect(port, 1)
    await asyncio.sleep(0.3)
    assert tried == 1
    monkeypatch.setattr(workers[0].shared, "_listener", real)
    await ask(connections)
    connections[0][1].close()
