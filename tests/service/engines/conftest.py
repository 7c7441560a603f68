"""Fixtures of the engine tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from service.engines.embedded import EmbeddedEngine
from service.engines.sessions import RuntimeSettings
from tests.service.engines.repositories import Repository

Start = Callable[..., Awaitable[EmbeddedEngine]]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "models")


@pytest.fixture
async def start(repository: Repository) -> AsyncIterator[Start]:
    """Starts an engine on the repository as it is then: ``await start(concurrent_runs=2)``."""
    engines: list[EmbeddedEngine] = []

    async def run(**settings: object) -> EmbeddedEngine:
        values: dict[str, object] = {"intra_op_threads": 1, "concurrent_runs": 1, "drain_seconds": 5.0, **settings}
        engine = EmbeddedEngine(repository.root, RuntimeSettings(**values))  # type: ignore[arg-type]
        engines.append(engine)
        await engine.start()
        return engine

    yield run
    for engine in engines:
        await engine.close()
