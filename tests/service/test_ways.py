"""The two ways of a picture, over the networks that ship: who goes which one, and that both answer the same."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from service.engines.base import Array, ModelMetadata, Models, Tensors
from service.engines.embedded import EmbeddedEngine
from service.engines.sessions import RuntimeSettings
from service.errors import DeadlineExceeded, InvalidImage, ServiceError
from service.options import PoseOptions
from service.pipeline import PosePipeline
from service.scenes import render_scene
from service.settings import Settings
from service.stages import Stages
from service.steps import Picture

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
OPTIONS = PoseOptions(max_people=2)


class Threads:
    """Notes the thread of each stage."""

    def __init__(self) -> None:
        self.of: dict[str, set[str]] = {}

    def stage(self, name: str, started: float) -> Callable[[float, bool], None]:
        self.of.setdefault(name, set()).add(threading.current_thread().name.partition("-")[0])
        return lambda ended, failed: None


class Asked(Models):
    """The same models, which can only be asked."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def infer(self, model: str, inputs: Tensors, *, timeout: float | None = None) -> dict[str, Array]:
        return await self._models.infer(model, inputs, timeout=timeout)

    async def models(self) -> list[str]:
        return await self._models.models()

    async def metadata(self, model: str) -> ModelMetadata:
        return await self._models.metadata(model)


def jpeg(width: int, height: int, seed: int = 3) -> bytes:
    scene = render_scene(seed=seed, size=(width, height), people=2, stature=(0.5, 0.8), occluders=0, whole=True)
    return cv2.imencode(".jpg", cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR))[1].tobytes()


@pytest.fixture(scope="module")
def small() -> bytes:
    return jpeg(640, 480)


@pytest.fixture
async def engine() -> AsyncIterator[EmbeddedEngine]:
    engine = EmbeddedEngine(REPOSITORY, RuntimeSettings(intra_op_threads=2, concurrent_runs=2))
    await engine.start()
    yield engine
    await engine.close()


@pytest.fixture
async def pipeline(engine: EmbeddedEngine) -> AsyncIterator[PosePipeline]:
    made = PosePipeline(engine, Settings(cpu_threads=2))
    yield made
    made.close()


async def test_both_ways_answer_the_same(pipeline: PosePipeline, engine: EmbeddedEngine, small: bytes) -> None:
    with engine.hold() as models:
        assert models.follows
        followed, asked = Threads(), Threads()
        one = await pipeline.run([Picture(small, 1)], OPTIONS, Stages(followed), models=models)
        other = await pipeline.run([Picture(small, 1)], OPTIONS, Stages(asked), models=Asked(models))
    people, same = one.pictures[0].people, other.pictures[0].people
    assert len(people) == 2
    # Not to the bit: how many rows ran together decides which kernels ONNX Runtime takes.
    np.testing.assert_allclose(people.keypoints, same.keypoints, atol=0.05)
    np.testing.assert_allclose(people.scores, same.scores, atol=1e-3)
    for stage in ("letterbox", "suppress", "crop", "pose", "people"):
        assert followed.of[stage] == {"inference"}, stage
    assert asked.of["letterbox"] == asked.of["crop"] == {"pixels"}


@pytest.mark.parametrize("kind", ["large", "several"])
async def test_what_takes_long_wakes_another_thread(pipeline: PosePipeline, small: bytes, kind: str) -> None:
    pictures = [Picture(jpeg(2000, 1500), 1)] if kind == "large" else [Picture(small, 1), Picture(small, 2)]
    threads = Threads()
    answer = await pipeline.run(pictures, OPTIONS, Stages(threads))
    assert [len(picture.people) for picture in answer.pictures] == [2] * len(pictures)
    assert threads.of["letterbox"] == threads.of["crop"] == {"pixels"}


async def test_given_boxes_and_drawn_pictures_go_the_short_way_too(pipeline: PosePipeline, small: bytes) -> None:
    threads = Threads()
    boxes = np.array([[10.0, 10.0, 300.0, 400.0]])
    answer = await pipeline.run([Picture(small, 1, boxes)], OPTIONS, Stages(threads), keep_pixels=True)
    assert len(answer.pictures[0].people) == 1
    assert answer.pictures[0].pixels is not None and answer.pictures[0].pixels.shape == (480, 640, 3)
    assert threads.of["crop"] == {"inference"} and "detector" not in threads.of


async def test_errors_are_those_of_the_other_way(pipeline: PosePipeline, engine: EmbeddedEngine, small: bytes) -> None:
    loop = asyncio.get_running_loop()
    cut = small[: len(small) // 2]
    told: list[tuple[type[ServiceError], str, int | None]] = []
    with engine.hold() as models:
        for one in (models, Asked(models)):
            with pytest.raises(InvalidImage) as raised:
                await pipeline.run([Picture(cut, 1)], OPTIONS, models=one)
            told.append((type(raised.value), raised.value.detail, raised.value.image_index))
            with pytest.raises(DeadlineExceeded):
                await pipeline.run([Picture(small, 1)], OPTIONS, models=one, deadline=loop.time() + 0.001)
    assert told[0] == told[1]
    assert len((await pipeline.run([Picture(small, 1)], OPTIONS)).pictures[0].people) == 2


async def test_where_a_run_has_several_cores_they_must_not_wait_for_pixels(small: bytes) -> None:
    engine = EmbeddedEngine(REPOSITORY, RuntimeSettings(intra_op_threads=4, concurrent_runs=2, warm_up=False))
    await engine.start()
    pipeline, threads = PosePipeline(engine, Settings(cpu_threads=2)), Threads()
    await pipeline.run([Picture(small, 1)], OPTIONS, Stages(threads))
    assert threads.of["letterbox"] == {"pixels"}
    pipeline.close()
    await engine.close()
