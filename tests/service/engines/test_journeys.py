"""Coroutines that the engine's threads take along: if these fail, a picture is lost between two networks."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from service.engines.base import Array, Ask
from service.engines.embedded import EmbeddedEngine
from service.errors import DeadlineExceeded, EngineUnavailable, InferenceFailed, InvalidImage, ModelNotFound
from tests.service.engines.conftest import Start
from tests.service.engines.repositories import JOIN, LONG, Repository, rows, turning

Work = Callable[[Ask], Coroutine[Any, Any, Any]]


async def follow(engine: EmbeddedEngine, work: Work, timeout: float | None = None) -> Any:
    with engine.hold() as models:
        return await models.follow(work, "times2", timeout=timeout)


@pytest.fixture
async def engine(repository: Repository, start: Start) -> EmbeddedEngine:
    repository.affine("times2", 2, extra=JOIN)
    repository.affine("times3", 3)
    repository.slow()
    return await start(concurrent_runs=2)


async def test_work_and_networks_take_turns_in_the_engines_threads(engine: EmbeddedEngine) -> None:
    seen: list[str] = []

    async def work(ask: Ask) -> Array:
        seen.append(threading.current_thread().name)
        doubled = (await ask("times2", {"x": rows(3)}))["y"]
        seen.append(threading.current_thread().name)
        return (await ask("times3", {"x": doubled + 1}))["y"]

    np.testing.assert_array_equal(await follow(engine, work), 3 * (2 * rows(3) + 1))
    assert all(name.startswith("inference-") for name in seen) and len(seen) == 2


async def test_no_rows_and_many_rows_are_answered_as_elsewhere(engine: EmbeddedEngine) -> None:
    async def work(ask: Ask) -> tuple[Array, Array]:
        return (await ask("times2", {"x": rows(0)}))["y"], (await ask("times2", {"x": rows(50)}))["y"]

    none, many = await follow(engine, work)
    assert none.shape == (0, 3)
    np.testing.assert_array_equal(many, 2 * rows(50))


async def test_journeys_share_batches_and_do_not_mix(engine: EmbeddedEngine) -> None:
    def journey(n: int) -> Work:
        async def work(ask: Ask) -> Array:
            once = (await ask("times2", {"x": rows(1, start=n)}))["y"]
            return (await ask("times2", {"x": once}))["y"]

        return work

    async def held(ask: Ask) -> None:
        await ask("slow", turning(300_000))

    busy = [asyncio.ensure_future(follow(engine, held)) for _ in range(2)]
    while engine.statistics()["slow"].running < 2:
        await asyncio.sleep(0.001)
    answers = await asyncio.gather(*(follow(engine, journey(n)) for n in range(20)))
    for n, answer in enumerate(answers):
        np.testing.assert_array_equal(answer, 4 * rows(1, start=n))
    await asyncio.gather(*busy)
    counted = engine.statistics()["times2"]
    assert counted.rows == 40


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_errors_of_the_work_come_through(engine: EmbeddedEngine, moment: str) -> None:
    async def work(ask: Ask) -> None:
        if moment == "after":
            await ask("times2", {"x": rows(1)})
        raise InvalidImage(f"{moment} the network")

    with pytest.raises(InvalidImage, match=moment):
        await follow(engine, work)
    assert (await engine.infer("times2", {"x": rows(1)}))["y"].shape == (1, 3)


async def test_errors_of_networks_are_raised_where_they_are_asked(engine: EmbeddedEngine) -> None:
    async def unknown(ask: Ask) -> str:
        try:
            await ask("nobody", {"x": rows(1)})
        except ModelNotFound as error:
            return error.detail
        return "no error"

    assert "'nobody' is not loaded" in await follow(engine, unknown)

    async def wrong(ask: Ask) -> None:
        await ask("times2", {"x": np.zeros((1, 4), np.float32)})

    with pytest.raises(ValueError, match=r"must have shape \[1, 3\]"):
        await follow(engine, wrong)


async def test_only_models_may_be_awaited(engine: EmbeddedEngine) -> None:
    async def work(ask: Ask) -> None:
        await asyncio.sleep(0)

    with pytest.raises((TypeError, RuntimeError, InferenceFailed), match=r"only models|no running event loop"):
        await follow(engine, work)
    assert await engine.ready()


async def test_time_is_up_for_all_of_it(engine: EmbeddedEngine) -> None:
    ended = threading.Event()

    async def work(ask: Ask) -> None:
        try:
            await ask("times2", {"x": rows(1)})
            await ask("slow", turning(LONG))
        finally:
            ended.set()

    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="'slow'"):
        await follow(engine, work, timeout=0.2)
    assert ended.wait(10)
    await engine.infer("slow", turning(1), timeout=20)
    assert time.monotonic() - began < 20


async def test_one_that_nobody_waits_for_is_never_begun(engine: EmbeddedEngine) -> None:
    begun: list[int] = []

    async def blocked(ask: Ask) -> None:
        await ask("slow", turning(LONG))

    async def work(ask: Ask) -> None:
        begun.append(1)

    busy = [asyncio.ensure_future(follow(engine, blocked)) for _ in range(2)]
    while engine.statistics()["slow"].running < 2:
        await asyncio.sleep(0.001)
    task = asyncio.ensure_future(follow(engine, work))
    await asyncio.sleep(0.01)
    for one in (task, *busy):
        one.cancel()
    results = await asyncio.gather(task, *busy, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    await engine.infer("times2", {"x": rows(1)}, timeout=20)
    assert not begun


async def test_an_answer_leaves_nothing_for_the_collector_of_cycles(engine: EmbeddedEngine) -> None:
    kept: list[weakref.ref[Any]] = []

    async def work(ask: Ask) -> int:
        pixels = rows(4)
        kept.append(weakref.ref(pixels))
        outputs = await ask("times2", {"x": pixels})
        kept.append(weakref.ref(outputs["y"]))
        return len((await ask("times3", {"x": outputs["y"]}))["y"])

    gc.collect()
    gc.disable()
    try:
        assert await follow(engine, work) == 4
        end = time.monotonic() + 10
        while any(ref() is not None for ref in kept) and time.monotonic() < end:
            await asyncio.sleep(0.001)
        assert [ref() for ref in kept] == [None, None]
    finally:
        gc.enable()


async def test_close_finishes_what_has_begun(engine: EmbeddedEngine) -> None:
    async def work(ask: Ask) -> Array:
        await ask("slow", turning(100_000))
        return (await ask("times2", {"x": rows(1)}))["y"]

    task: Awaitable[Any] = asyncio.ensure_future(follow(engine, work))
    while not engine.statistics()["slow"].running:
        await asyncio.sleep(0.001)
    await engine.close()
    np.testing.assert_array_equal(await task, 2 * rows(1))
    with pytest.raises(EngineUnavailable):
        await follow(engine, work)
