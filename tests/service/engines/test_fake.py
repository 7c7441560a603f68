"""The fake engine keeps the real one's contract, so that a test of the pipeline on it means something."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from service.engines.base import Engine, ModelMetadata, TensorSpec
from service.engines.embedded import EmbeddedEngine
from service.engines.fake import FakeEngine, FakeModel
from service.engines.triton import TritonEngine
from service.errors import DeadlineExceeded, EngineUnavailable, InferenceFailed, ModelNotFound
from tests.service.engines.repositories import Repository

DOUBLE = ModelMetadata(
    name="double",
    versions=(1,),
    platform="onnxruntime_onnx",
    max_batch_size=8,
    inputs=(TensorSpec("x", "float32", (3,)),),
    outputs=(TensorSpec("y", "float32", (3,)),),
)


def fake() -> FakeEngine:
    return FakeEngine({"double": FakeModel(DOUBLE, lambda inputs: {"y": inputs["x"] * np.float32(2)})})


def engine_of(kind: str, folder: Path, request: pytest.FixtureRequest) -> Engine:
    if kind == "fake":
        return fake()
    if kind == "triton":
        return TritonEngine(request.getfixturevalue("small_triton").grpc_url)
    repository = Repository(folder)
    repository.affine("double", 2)
    return EmbeddedEngine(folder)


@pytest.mark.parametrize("kind", ["fake", "embedded", "triton"])
async def test_one_contract(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """What the pipeline relies on, asked of all engines in the same words."""
    engine = engine_of(kind, tmp_path, request)
    assert engine.kind == kind
    x = np.arange(33, dtype=np.float32).reshape(11, 3)
    assert not await engine.ready()
    with pytest.raises(EngineUnavailable):
        await engine.infer("double", {"x": x})
    await engine.start()
    assert await engine.ready()
    names = await engine.models()
    assert "double" in names
    assert names == sorted(names)
    assert await engine.metadata("double") == DOUBLE
    for rows in (0, 1, 11):
        outputs = await engine.infer("double", {"x": x[:rows]}, timeout=60)
        np.testing.assert_array_equal(outputs["y"], 2 * x[:rows])
        assert outputs["y"].dtype == np.float32
    for wrong in ({}, {"z": x}, {"x": x, "z": x}, {"x": x[:, :2]}, {"x": x.astype(np.float64)}):
        with pytest.raises(ValueError, match="'double'"):
            await engine.infer("double", wrong)
    for call in (engine.infer("gone", {"x": x}), engine.metadata("gone")):
        with pytest.raises(ModelNotFound, match="'gone'"):
            await call
    await engine.close()
    await engine.close()
    assert not await engine.ready()
    with pytest.raises(EngineUnavailable):
        await engine.infer("double", {"x": x})


async def test_calls_are_recorded_as_they_were() -> None:
    engine = fake()
    await engine.start()
    x = np.ones((1, 3), np.float32)
    await engine.infer("double", {"x": x}, timeout=3)
    x[:] = 7
    (call,) = engine.calls
    assert (call.model, call.timeout, call.inputs["x"].tolist()) == ("double", 3, [[1, 1, 1]])


async def test_it_fails_delays_and_goes_away_when_told() -> None:
    engine = fake()
    await engine.start()
    x = {"x": np.ones((1, 3), np.float32)}
    engine.failures["double"] = InferenceFailed("told to")
    with pytest.raises(InferenceFailed, match="told to"):
        await engine.infer("double", x)
    engine.failures.clear()
    engine.delay = 0.05
    began = time.monotonic()
    await engine.infer("double", x)
    assert time.monotonic() - began >= 0.04
    engine.delay = 60
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await engine.infer("double", x, timeout=0.05)
    assert time.monotonic() - began < 5
    engine.delay = 0
    engine.available = False
    assert not await engine.ready()
    with pytest.raises(EngineUnavailable):
        await engine.infer("double", x)
    with pytest.raises(EngineUnavailable):
        await engine.start()
    engine.available = True
    assert await engine.ready()
    await engine.infer("double", x)


async def test_a_script_that_breaks_its_own_config_is_a_broken_test() -> None:
    engine = FakeEngine({"double": FakeModel(DOUBLE, lambda inputs: {"y": np.zeros((1, 4), np.float32)})})
    await engine.start()
    with pytest.raises(AssertionError, match=r"'y' as float32 \[1, 4\], its config says float32 \[1, 3\]"):
        await engine.infer("double", {"x": np.ones((1, 3), np.float32)})
