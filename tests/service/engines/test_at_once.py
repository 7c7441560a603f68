"""Models that take no longer than waking another worker: whoever asks for them in a worker runs them itself."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper
from onnxruntime import RunOptions

from service.engines.base import Array, Ask, Tensors
from service.engines.batching import BatchScheduler
from service.engines.config import BatchPolicy
from service.engines.queues import Caller, Outputs
from service.errors import InferenceFailed, ServiceError
from tests.service.engines.conftest import Start
from tests.service.engines.gated import JOIN, Gated, ask, rows
from tests.service.engines.repositories import FLOAT, Repository, Signature

QUICK = BatchPolicy(max_rows=8, at_once=True)
Outcome = list[Outputs] | ServiceError


class Told:
    """A quick model that remembers which thread ran it, and whether it had the cores to itself."""

    def __init__(self) -> None:
        self.threads: list[str] = []
        self.alone: list[bool] = []
        self.fails = False

    def __call__(self, inputs: Tensors, options: RunOptions, alone: bool) -> dict[str, Array]:
        self.threads.append(threading.current_thread().name)
        self.alone.append(alone)
        if self.fails:
            raise RuntimeError("broken")
        return {"y": inputs["x"] + 1}


@pytest.fixture
def first() -> Gated:
    return Gated()


@pytest.fixture
def quick() -> Told:
    return Told()


@pytest.fixture
def scheduler(first: Gated, quick: Told) -> Iterator[BatchScheduler]:
    scheduler = BatchScheduler(workers=1)
    scheduler.add("first", first, JOIN)
    scheduler.add("quick", quick, QUICK)
    yield scheduler
    first.open.set()
    scheduler.stop(5)


async def go_through(
    scheduler: BatchScheduler, then: Callable[[Caller, list[Outputs], Callable[[Outcome], None]], None]
) -> tuple[object, list[str]]:
    """Ask for ``first``, then ``then`` in the worker: what the caller gets, and what happened in which order."""
    caller, order, went_on = Caller(scheduler), [], threading.Event()

    def end(outcome: Outcome) -> None:
        order.append("ended")
        caller.finish(outcome)

    def go_on(outcome: Outcome) -> None:
        assert isinstance(outcome, list)
        then(caller, outcome, end)
        order.append("submitted")
        went_on.set()

    scheduler.submit(caller, "first", [rows(3)], go_on)
    answer = await caller.answer("first", None)
    # The answer may be here before the worker is back from `then`.
    assert await asyncio.to_thread(went_on.wait, 10)
    return answer, order


async def test_a_worker_runs_it_before_what_waits(scheduler: BatchScheduler, first: Gated, quick: Told) -> None:
    first.open.clear()
    before: list[list[float]] = []

    def then(caller: Caller, got: list[Outputs], end: Callable[[Outcome], None]) -> None:
        scheduler.submit(caller, "quick", [{"x": got[0]["y"]}], end)
        before.extend(first.runs)

    going = asyncio.ensure_future(go_through(scheduler, then))
    await first.started()
    waiting = [ask(scheduler, value, name="first") for value in (8, 9)]
    await asyncio.sleep(0)
    first.open.set()
    outcome, order = await going
    assert isinstance(outcome, list)
    assert outcome[0]["y"].tolist() == [[7]]
    assert order == ["ended", "submitted"]  # before submit returned
    assert before == [[3]]
    assert quick.threads == ["inference-0"]
    assert quick.alone == [False]  # others wait
    assert await asyncio.gather(*waiting) == [[16], [18]]
    counted = scheduler.statistics()["quick"]
    assert (counted.requests, counted.runs, counted.parts, counted.rows, counted.running) == (1, 1, 1, 1, 0)


async def test_the_event_loop_does_not_run_it(scheduler: BatchScheduler, quick: Told) -> None:
    caller = Caller(scheduler)
    scheduler.submit(caller, "quick", [rows(1)], caller.finish)
    outputs = await caller.answer("quick", None)
    assert outputs[0]["y"].tolist() == [[2]]
    assert quick.threads == ["inference-0"]


async def test_one_of_many_parts_is_queued(scheduler: BatchScheduler, quick: Told) -> None:
    """Rows beyond a run's limit: the others get their turns between."""
    outcome, order = await go_through(
        scheduler, lambda caller, got, end: scheduler.submit(caller, "quick", [rows(1), rows(2)], end)
    )
    assert isinstance(outcome, list)
    assert [part["y"].tolist() for part in outcome] == [[[2]], [[3]]]
    assert order == ["submitted", "ended"]


async def test_its_failure_is_the_callers(scheduler: BatchScheduler, quick: Told) -> None:
    quick.fails = True
    with pytest.raises(InferenceFailed, match="'quick': broken"):
        await go_through(scheduler, lambda caller, got, end: scheduler.submit(caller, "quick", got, end))
    assert scheduler.statistics()["quick"].failed_runs == 1
    quick.fails = False
    outcome, _ = await go_through(scheduler, lambda caller, got, end: scheduler.submit(caller, "quick", [rows(1)], end))
    assert isinstance(outcome, list)


async def test_a_caller_that_has_gone_gets_nothing_run(scheduler: BatchScheduler, quick: Told) -> None:
    def leave(caller: Caller, got: list[Outputs], end: Callable[[Outcome], None]) -> None:
        scheduler.abandon(caller)
        scheduler.submit(caller, "quick", got, end)
        caller.finish(None)

    assert await go_through(scheduler, leave) == (None, ["submitted"])
    assert quick.threads == []


async def test_its_instances_bound_it_here_too(first: Gated) -> None:
    """One run of it is on in another worker: this one queues for it."""
    scheduler, busy = BatchScheduler(workers=2), Gated()
    scheduler.add("first", first, JOIN)
    scheduler.add("quick", busy, replace(QUICK, instances=1))
    busy.open.clear()
    held = ask(scheduler, 1, name="quick")
    await busy.started()
    going = asyncio.ensure_future(
        go_through(scheduler, lambda caller, got, end: scheduler.submit(caller, "quick", [rows(2)], end))
    )
    end = time.monotonic() + 10
    while scheduler.statistics()["quick"].requests < 2:
        assert time.monotonic() < end, "it was not asked for"
        await asyncio.sleep(0.001)
    counted = scheduler.statistics()["quick"]
    assert (counted.running, counted.queued) == (1, 1)
    busy.open.set()
    _, order = await going
    assert sorted(order) == ["ended", "submitted"]
    assert busy.most_at_a_time == 1
    assert await held == [2]
    scheduler.stop(5)


async def test_an_ensemble_begins_its_other_steps_before(
    repository: Repository, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A free worker takes those meanwhile, in whichever order the config names them."""
    wide: Signature = {"x": (FLOAT, [10_000])}
    out: Signature = {"y": (FLOAT, [10_000])}
    for name, operator in (("mirror", "Neg"), ("last", "Abs")):
        repository.network(name, [helper.make_node(operator, ["x"], ["y"])], wide, out)
    weights = numpy_helper.from_array(np.full((10_000,), 2, np.float32), "weights")
    repository.network("net", [helper.make_node("Mul", ["x", "weights"], ["y"])], wide, out, initializers=[weights])
    steps = [
        ("mirror", {"x": "x"}, {"y": "mirrored"}),
        ("net", {"x": "x"}, {"y": "straight"}),
        ("last", {"x": "mirrored"}, {"y": "y"}),
    ]
    repository.ensemble("e", steps, wide, {**out, "straight": (FLOAT, [10_000])})
    engine = await start()
    assert [engine.networks[name].batching.at_once for name in ("mirror", "net", "last")] == [True, False, True]
    asked: list[str] = []
    submit = BatchScheduler.submit

    def noted(self: BatchScheduler, caller: Caller, key: str, *rest: Any) -> None:
        asked.append(key.partition("/")[0])
        submit(self, caller, key, *rest)

    monkeypatch.setattr(BatchScheduler, "submit", noted)
    x = np.ones((2, 10_000), np.float32)

    async def work(ask: Ask) -> dict[str, Array]:
        return await ask("e", {"x": x})

    with engine.hold() as models:
        outputs = await models.follow(work, "e")
    np.testing.assert_array_equal(outputs["y"], x)
    np.testing.assert_array_equal(outputs["straight"], 2 * x)
    assert asked == ["net", "mirror", "last"]
