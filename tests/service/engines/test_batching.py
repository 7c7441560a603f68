"""The batcher: requests that wait together run together, and each caller gets its own rows or its own error."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest

from service.engines.batching import BatchScheduler
from service.engines.config import BatchPolicy
from service.engines.queues import Caller
from service.errors import DeadlineExceeded, EngineUnavailable, InferenceFailed, Overloaded
from tests.service.engines.gated import JOIN, Gated, answer, ask, block, rows


@pytest.fixture
def model() -> Gated:
    return Gated()


@pytest.fixture
def scheduler(model: Gated) -> Iterator[BatchScheduler]:
    scheduler = BatchScheduler(workers=1)
    yield scheduler
    model.open.set()
    scheduler.stop(5)


@pytest.fixture
async def beside(model: Gated) -> AsyncIterator[tuple[BatchScheduler, Gated]]:
    """Two workers, one of them busy with another model's run until that model's ``open`` is set."""
    scheduler, busy = BatchScheduler(workers=2), Gated()
    scheduler.add("busy", busy, JOIN)
    busy.open.clear()
    task = ask(scheduler, 0, name="busy")
    await busy.started()
    yield scheduler, busy
    busy.open.set()
    model.open.set()
    await task
    scheduler.stop(5)


async def test_what_waits_while_a_run_is_on_is_joined_up_to_the_limit(scheduler: BatchScheduler, model: Gated) -> None:
    scheduler.add("m", model, JOIN)
    first = await block(scheduler, model)
    tasks = [ask(scheduler, 10 * n, 10 * n + 1, 10 * n + 2) for n in range(1, 5)]
    await asyncio.sleep(0)
    model.open.set()
    assert await first == [0]
    assert await asyncio.gather(*tasks) == [[20 * n, 20 * n + 2, 20 * n + 4] for n in range(1, 5)]
    # 3 + 3 rows fit into 8, a third 3 does not; arrival order is kept.
    assert model.runs == [[0], [10, 11, 12, 20, 21, 22], [30, 31, 32, 40, 41, 42]]
    counted = scheduler.statistics()["m"]
    assert (counted.requests, counted.parts, counted.runs, counted.rows) == (5, 5, 3, 13)
    assert counted.batch_sizes == {1: 1, 6: 2}
    assert (counted.queued, counted.running, counted.failed_runs, counted.rejected) == (0, 0, 0, 0)
    assert counted.compute_seconds > 0
    assert counted.queue_seconds > 0


async def test_a_run_is_told_whether_it_has_the_cores_to_itself(
    beside: tuple[BatchScheduler, Gated], model: Gated
) -> None:
    scheduler, busy = beside
    scheduler.add("m", model, JOIN)
    assert busy.alone == [True]  # began with nothing else about, and goes on
    await ask(scheduler, 1)
    assert model.alone == [False]
    busy.open.set()
    while scheduler.statistics()["busy"].running:
        await asyncio.sleep(0.001)
    await ask(scheduler, 2)
    assert model.alone == [False, True]


async def test_a_run_that_leaves_others_waiting_is_not_alone(scheduler: BatchScheduler, model: Gated) -> None:
    scheduler.add("m", model, BatchPolicy(max_rows=8))
    first = await block(scheduler, model)
    tasks = [ask(scheduler, 1), ask(scheduler, 2)]
    await asyncio.sleep(0)
    model.open.set()
    await asyncio.gather(first, *tasks)
    assert model.alone == [True, False, True]


async def test_only_equal_shapes_are_joined_and_others_keep_their_turn(scheduler: BatchScheduler, model: Gated) -> None:
    scheduler.add("m", model, JOIN)
    first = await block(scheduler, model)

    async def wide(*values: float) -> list[list[float]]:
        outputs = await answer(scheduler, "m", [{"x": np.array([values, values], np.float32)}])
        return outputs["y"].tolist()

    tasks: list[asyncio.Future[object]] = [
        asyncio.ensure_future(t) for t in (ask(scheduler, 1), wide(2, 3), ask(scheduler, 4), wide(5, 6))
    ]
    await asyncio.sleep(0)
    model.open.set()
    await first
    assert await asyncio.gather(*tasks) == [[2], [[4, 6]] * 2, [8], [[10, 12]] * 2]
    assert model.runs[1:] == [[1, 4], [2, 3, 2, 3, 5, 6, 5, 6]]


async def test_without_joining_each_request_runs_alone(scheduler: BatchScheduler, model: Gated) -> None:
    scheduler.add("m", model, BatchPolicy(max_rows=8))
    first = await block(scheduler, model)
    tasks = [ask(scheduler, n) for n in (1, 2, 3)]
    await asyncio.sleep(0)
    model.open.set()
    await asyncio.gather(first, *tasks)
    assert model.runs == [[0], [1], [2], [3]]


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_lone_request_does_not_wait_when_nothing_runs(model: Gated, workers: int) -> None:
    """Half a millisecond for each of a request's models, for company that cannot come."""
    scheduler = BatchScheduler(workers)
    scheduler.add("m", model, BatchPolicy(max_rows=4, joins=True, delay=600))
    for number in range(3):
        assert await asyncio.wait_for(ask(scheduler, number), 60) == [2 * number]
    scheduler.stop(5)


async def test_the_delay_waits_for_company_and_no_longer(beside: tuple[BatchScheduler, Gated], model: Gated) -> None:
    scheduler, _ = beside
    scheduler.add("m", model, BatchPolicy(max_rows=4, joins=True, delay=0.4))
    started = time.monotonic()
    tasks = [ask(scheduler, 1), ask(scheduler, 2)]
    await asyncio.sleep(0.03)
    tasks.append(ask(scheduler, 3))
    assert await asyncio.gather(*tasks) == [[2], [4], [6]]
    assert model.runs == [[1, 2, 3]]
    assert 0.39 < time.monotonic() - started < 10


async def test_nobody_waits_for_company_longer_than_for_the_run_beside(
    beside: tuple[BatchScheduler, Gated], model: Gated
) -> None:
    scheduler, busy = beside
    scheduler.add("m", model, BatchPolicy(max_rows=4, joins=True, delay=600))
    tasks = [ask(scheduler, 1), ask(scheduler, 2)]
    await asyncio.sleep(0.02)
    assert not model.runs
    busy.open.set()
    assert await asyncio.wait_for(asyncio.gather(*tasks), 60) == [[2], [4]]
    assert model.runs == [[1, 2]]


async def test_a_full_batch_does_not_wait(beside: tuple[BatchScheduler, Gated], model: Gated) -> None:
    scheduler, _ = beside
    scheduler.add("m", model, BatchPolicy(max_rows=4, joins=True, delay=600))
    tasks = [ask(scheduler, n) for n in (4, 5, 6, 7)]
    assert await asyncio.wait_for(asyncio.gather(*tasks), 60) == [[8], [10], [12], [14]]
    assert model.runs == [[4, 5, 6, 7]]


async def test_a_model_that_waits_for_company_does_not_hold_up_another(
    beside: tuple[BatchScheduler, Gated], model: Gated
) -> None:
    scheduler, _ = beside
    scheduler.add("patient", model, BatchPolicy(max_rows=4, joins=True, delay=0.3))
    scheduler.add("m", model, JOIN)
    patient = ask(scheduler, 1, name="patient")
    await asyncio.sleep(0.02)
    assert await ask(scheduler, 5) == [10]
    assert not patient.done()
    assert await patient == [2]


async def test_one_model_runs_while_another_does(beside: tuple[BatchScheduler, Gated], model: Gated) -> None:
    """A request's people are posed while the next one's are looked for, or the cores idle between the two."""
    scheduler, busy = beside
    scheduler.add("m", model, JOIN)
    assert await asyncio.wait_for(ask(scheduler, 1), 60) == [2]
    assert busy.at_a_time == 1, "and the other is still at it"


async def test_oldest_first_over_all_models(scheduler: BatchScheduler, model: Gated) -> None:
    for name in ("m", "other"):
        scheduler.add(name, model, BatchPolicy(max_rows=8))
    first = await block(scheduler, model)
    tasks = [ask(scheduler, n, name=name) for n, name in enumerate(["other", "m", "other", "m"], 1)]
    await asyncio.sleep(0)
    model.open.set()
    await asyncio.gather(first, *tasks)
    assert model.runs == [[0], [1], [2], [3], [4]]


async def test_a_step_is_as_old_as_the_work_it_belongs_to(scheduler: BatchScheduler, model: Gated) -> None:
    """What has been begun is ended before something else is."""
    for name in ("m", "other"):
        scheduler.add(name, model, BatchPolicy(max_rows=8))
    began = time.monotonic()
    first = await block(scheduler, model)
    waiting = ask(scheduler, 1)
    await asyncio.sleep(0)
    caller = Caller(scheduler)
    scheduler.submit(caller, "other", [rows(2)], lambda outcome: caller.finish({}), since=began)
    model.open.set()
    await asyncio.gather(first, waiting, caller.answer("other", None))
    assert model.runs == [[0], [2], [1]]


async def test_a_cancelled_request_leaves_the_queue(scheduler: BatchScheduler, model: Gated) -> None:
    scheduler.add("m", model, JOIN)
    first = await block(scheduler, model)
    tasks = [ask(scheduler, n) for n in (1, 2, 3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]
    model.open.set()
    assert [await first, await tasks[0], await tasks[2]] == [[0], [2], [6]]
    assert model.runs == [[0], [1, 3]]
    assert scheduler.statistics()["m"].abandoned == 1


async def test_a_request_cancelled_while_it_runs_spoils_nothing(scheduler: BatchScheduler, model: Gated) -> None:
    scheduler.add("m", model, JOIN)
    first = await block(scheduler, model)
    tasks = [ask(scheduler, n) for n in (1, 2)]
    await asyncio.sleep(0)
    # Let the first run end and stop the joined one in the middle.
    gate, model.open = model.open, threading.Event()
    gate.set()
    await model.started(2)
    tasks[0].cancel()
    await asyncio.sleep(0.01)
    assert not model.options[1].terminate  # someone still waits for this run
    model.open.set()
    assert await tasks[1] == [4]
    assert await first == [0]


async def test_a_run_that_nobody_waits_for_is_told_to_end(scheduler: BatchScheduler, model: Gated) -> None:
    scheduler.add("m", model, JOIN)
    first = await block(scheduler, model)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert model.options[0].terminate


@pytest.mark.parametrize("running", [True, False])
async def test_a_timeout_is_prompt(scheduler: BatchScheduler, model: Gated, running: bool) -> None:
    scheduler.add("m", model, JOIN)
    if running:
        model.open.clear()
    else:
        first = await block(scheduler, model)
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="'m' did not answer in time"):
        await ask(scheduler, 1, timeout=0.05)
    assert 0.04 < time.monotonic() - started < 5
    model.open.set()
    if not running:
        assert await first == [0]
        assert await ask(scheduler, 2) == [4]
        assert [1] not in model.runs


async def test_time_limit_in_the_queue(scheduler: BatchScheduler, model: Gated) -> None:
    scheduler.add("m", model, BatchPolicy(max_rows=8, queue_timeout=0.5))
    first = await block(scheduler, model)
    late = ask(scheduler, 1)
    await asyncio.sleep(0.6)
    model.open.set()
    with pytest.raises(DeadlineExceeded, match="waited too long"):
        await late
    assert await first == [0]
    assert model.runs == [[0]]


async def test_a_full_queue_refuses_at_once(scheduler: BatchScheduler, model: Gated) -> None:
    scheduler.add("m", model, BatchPolicy(max_rows=8, max_queue=2))
    first = await block(scheduler, model)
    tasks = [ask(scheduler, n) for n in (1, 2, 3)]
    with pytest.raises(Overloaded, match="'m': 2 requests wait"):
        await tasks[2]
    assert scheduler.statistics()["m"].queued == 2
    model.open.set()
    assert await asyncio.gather(first, *tasks[:2]) == [[0], [2], [4]]
    assert scheduler.statistics()["m"].rejected == 1


async def test_a_failure_is_of_those_requests_alone(scheduler: BatchScheduler, model: Gated) -> None:
    scheduler.add("m", model, BatchPolicy(max_rows=2, joins=True))
    model.fail_on = 2
    first = await block(scheduler, model)
    tasks = [ask(scheduler, n) for n in (1, 2, 3, 4)]
    await asyncio.sleep(0)
    model.open.set()
    answers = await asyncio.gather(first, *tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [list, InferenceFailed, InferenceFailed, list, list]
    assert str(answers[1]) == "model 'm': no 2"
    assert answers[1] is not answers[2]
    assert answers[3:] == [[6], [8]]
    assert scheduler.statistics()["m"].failed_runs == 1
    assert await ask(scheduler, 5) == [10]


async def test_one_failing_part_fails_its_request_and_drops_the_rest(scheduler: BatchScheduler, model: Gated) -> None:
    scheduler.add("m", model, BatchPolicy(max_rows=1))
    model.fail_on = 1
    with pytest.raises(InferenceFailed, match="no 1"):
        await answer(scheduler, "m", [rows(1), rows(2), rows(3)])
    assert await ask(scheduler, 4) == [8]
    assert scheduler.statistics()["m"].queued == 0


async def test_a_worker_outlives_what_callers_make_of_an_answer(scheduler: BatchScheduler, model: Gated) -> None:
    scheduler.add("m", model, JOIN)
    caller = Caller(scheduler)

    def stumble(outcome: object) -> None:
        raise KeyError("y")

    scheduler.submit(caller, "m", [rows(1)], stumble)
    with pytest.raises(InferenceFailed, match=r"'m'.*'y'"):
        await caller.answer("m", None)
    assert await ask(scheduler, 2) == [4]


async def test_a_request_of_a_caller_that_has_gone_is_dropped(scheduler: BatchScheduler, model: Gated) -> None:
    scheduler.add("m", model, JOIN)
    caller = Caller(scheduler)
    scheduler.abandon(caller)
    scheduler.submit(caller, "m", [rows(1)], lambda outcome: None)
    assert await ask(scheduler, 2) == [4]
    assert model.runs == [[2]]


async def test_a_model_that_loses_rows_is_a_failure(scheduler: BatchScheduler) -> None:
    scheduler.add("m", lambda inputs, options, alone: {"y": np.zeros((1, 1), np.float32)}, JOIN)
    with pytest.raises(InferenceFailed, match=r"output 'y' of 2 rows has shape \[1, 1\]"):
        await ask(scheduler, 1, 2)


@pytest.mark.parametrize(("instances", "at_a_time"), [(0, 3), (1, 1), (2, 2)])
async def test_instances_bound_the_runs_of_one_model(model: Gated, instances: int, at_a_time: int) -> None:
    scheduler = BatchScheduler(workers=3)
    try:
        scheduler.add("m", model, BatchPolicy(max_rows=1, instances=instances))
        scheduler.add("free", lambda inputs, options, alone: {"y": inputs["x"]}, BatchPolicy(max_rows=1))
        model.open.clear()
        tasks = [ask(scheduler, n) for n in range(6)]
        await model.started(at_a_time)
        if instances:  # another model still finds a worker
            assert await ask(scheduler, 7, name="free") == [7]
        model.open.set()
        assert await asyncio.gather(*tasks) == [[2 * n] for n in range(6)]
        assert model.most_at_a_time == at_a_time
    finally:
        model.open.set()
        scheduler.stop(5)


async def test_stop_works_off_the_queue_then_refuses(model: Gated) -> None:
    scheduler = BatchScheduler(workers=2)
    # A long delay is not waited for when the engine closes, whatever runs.
    scheduler.add("m", model, BatchPolicy(max_rows=8, joins=True, delay=30))
    first = await block(scheduler, model)
    tasks = [ask(scheduler, n) for n in (1, 2)]
    await asyncio.sleep(0.01)
    assert model.runs == [[0]]
    stopping = asyncio.ensure_future(asyncio.to_thread(scheduler.stop, 5))
    await model.started(2)
    model.open.set()
    await stopping
    assert await asyncio.gather(first, *tasks) == [[0], [2], [4]]
    assert not scheduler.alive
    with pytest.raises(EngineUnavailable):
        await ask(scheduler, 3)


async def test_stop_does_not_wait_for_ever(model: Gated) -> None:
    scheduler = BatchScheduler(workers=1)
    scheduler.add("m", model, BatchPolicy(max_rows=8))
    first = await block(scheduler, model)
    waiting = ask(scheduler, 1)
    await asyncio.sleep(0)
    await asyncio.to_thread(scheduler.stop, 0.05)
    with pytest.raises(EngineUnavailable):
        await waiting
    model.open.set()
    assert await first == [0]


def test_an_answer_after_its_loop_is_closed_does_no_harm(model: Gated) -> None:
    scheduler = BatchScheduler(workers=1)
    scheduler.add("m", model, JOIN)
    model.open.clear()

    async def leave() -> None:
        task = ask(scheduler, 1)
        await model.started()
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(leave())
    model.open.set()
    assert asyncio.run(_answer(scheduler)) == [4]
    scheduler.stop(5)


async def _answer(scheduler: BatchScheduler) -> list[float]:
    return await ask(scheduler, 2)
