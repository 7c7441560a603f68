"""The engine of the settings."""

from __future__ import annotations

import pytest

from service import engine_choice
from service.engines.embedded import EmbeddedEngine
from service.settings import Settings


@pytest.mark.parametrize(
    ("cores", "workers", "runs"), [(1, 1, 1), (2, 1, 2), (2, 2, 1), (8, 1, 2), (8, 4, 2), (8, 8, 1), (4, 9, 1)]
)
def test_a_worker_with_one_core_runs_one_network_at_a_time(
    monkeypatch: pytest.MonkeyPatch, cores: int, workers: int, runs: int
) -> None:
    monkeypatch.setattr(engine_choice, "available_cores", lambda: cores)
    engine = engine_choice.open_engine(Settings(workers=workers))
    assert isinstance(engine, EmbeddedEngine)
    assert engine.settings.concurrent_runs == runs
