"""Fixtures of the engine tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from onnx import helper

from deploy.triton.installation import Installation
from deploy.triton.server import TritonServer
from service.engines.embedded import EmbeddedEngine
from service.engines.sessions import RuntimeSettings
from tests.service.engines.repositories import FLOAT, INT64, UINT8, Repository, turning

Start = Callable[..., Awaitable[EmbeddedEngine]]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "models")


@pytest.fixture
async def start(repository: Repository) -> AsyncIterator[Start]:
    """Starts an engine on the repository as it is then: ``await start(concurrent_runs=2)``."""
    engines: list[EmbeddedEngine] = []

    async def run(**settings: object) -> EmbeddedEngine:
        values: dict[str, object] = {
            "intra_op_threads": 1,
            "concurrent_runs": 1,
            "cpu_rows": 8,
            "drain_seconds": 5.0,
            **settings,
        }
        engine = EmbeddedEngine(repository.root, RuntimeSettings(**values))  # type: ignore[arg-type]
        engines.append(engine)
        await engine.start()
        return engine

    yield run
    for engine in engines:
        await engine.close()


@contextlib.asynccontextmanager
async def busy(engine: EmbeddedEngine) -> AsyncIterator[None]:
    """Something runs meanwhile: only then is company waited for."""
    task = asyncio.ensure_future(engine.infer("slow", turning(300_000)))
    while not engine.statistics()["slow"].running:
        await asyncio.sleep(0.001)
    yield
    await task


@pytest.fixture(scope="module")
def small_triton(triton_installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A real tritonserver over a few small models; looks for new versions every second."""
    repository = Repository(tmp_path_factory.mktemp("triton") / "models")
    one = "instance_group { count: 1 kind: KIND_CPU }\n"
    repository.affine("double", 2, extra=one)
    repository.affine("flat", 2, max_batch_size=0, extra=one)
    repository.slow(extra=one + "dynamic_batching { default_queue_policy { max_queue_size: 2 } }\n", max_batch_size=1)
    planes = {"images": (UINT8, [64, 64, 3])}, {"planes": (UINT8, [3, 64, 64])}
    nodes = [helper.make_node("Transpose", ["images"], ["planes"], perm=[0, 3, 1, 2])]
    text = f'platform: "onnxruntime_onnx"\n{one}dynamic_batching {{ }}\n'
    repository.network("planes", nodes, *planes, extra=text)
    pick = {"x": (FLOAT, [3]), "i": (INT64, [1])}, {"y": (FLOAT, [1])}
    nodes = [helper.make_node("GatherElements", ["x", "i"], ["y"], axis=1)]
    repository.network("pick", nodes, *pick, extra=f'platform: "onnxruntime_onnx"\n{one}')
    steps = [("slow", {"x": "x", "turns": "turns"}, {"y": "y"})]
    waiting = {"x": (FLOAT, [64]), "turns": (INT64, [1])}, {"y": (FLOAT, [64])}
    repository.ensemble("slow_ensemble", steps, *waiting, max_batch_size=1)
    with TritonServer(repository.root, control="poll", installation=triton_installation) as server:
        yield server
