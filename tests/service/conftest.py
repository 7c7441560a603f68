"""A running application over the fake engine, without a network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.engines.fake import FakeEngine
from service.settings import Settings
from tests.service.marked_people import card_engine


@pytest.fixture
def settings() -> Settings:
    return Settings(cpu_threads=2)


@pytest.fixture
def engine() -> FakeEngine:
    return card_engine()


@pytest.fixture
async def app(settings: Settings, engine: FakeEngine) -> AsyncIterator[FastAPI]:
    application = create_app(settings, engine)
    async with application.router.lifespan_context(application):
        await asyncio.wait_for(application.state.service.readiness.wait(), 20)
        yield application


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://pose") as connected:
        yield connected
