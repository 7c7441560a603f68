"""The application behind the real HTTP server, on a port of its own, in the test's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.engines.fake import FakeEngine
from service.server import uvicorn_config
from service.settings import Settings
from tests.service.marked_people import card_engine


@asynccontextmanager
async def serving(settings: Settings, engine: FakeEngine | None = None) -> AsyncIterator[tuple[FastAPI, int]]:
    """A ready service and its port."""
    app = create_app(settings.model_copy(update={"port": 0}), engine or card_engine())
    server = uvicorn.Server(uvicorn_config(app, settings.model_copy(update={"port": 0})))
    task = asyncio.ensure_future(server.serve())
    while not server.started:
        assert not task.done()
        await asyncio.sleep(0.005)
    await asyncio.wait_for(app.state.service.readiness.wait(), 20)
    try:
        yield app, server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await asyncio.wait((task,), timeout=10)
        server.force_exit = True
        await asyncio.wait_for(task, 10)


async def talk(port: int, data: bytes, end: bytes | None = None, seconds: float = 20) -> bytes:
    """Send bytes and read until ``end`` comes, or the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.readuntil(end) if end else reader.read(), seconds)
    finally:
        writer.close()
