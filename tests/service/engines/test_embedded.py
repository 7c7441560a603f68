"""The embedded engine on real ONNX graphs: the same repository that Triton serves, answered in the process."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref

import numpy as np
import pytest
from onnx import helper

from service.engines.embedded import EmbeddedEngine
from service.errors import DeadlineExceeded, EngineUnavailable, InferenceFailed, ModelNotFound, Overloaded
from tests.service.engines.conftest import Start, busy
from tests.service.engines.repositories import FLOAT, INT64, JOIN, LONG, OUT, ROW, UINT8, Repository, rows, turning


@pytest.mark.parametrize("count", [1, 8, 9, 50])
async def test_any_number_of_rows_is_answered_in_order(repository: Repository, start: Start, count: int) -> None:
    repository.affine("m", 2, 1)
    engine = await start(concurrent_runs=2)
    outputs = await engine.infer("m", {"x": rows(count)})
    assert list(outputs) == ["y"]
    np.testing.assert_array_equal(outputs["y"], 2 * rows(count) + 1)
    sizes = engine.statistics()["m"].batch_sizes
    assert sum(size * runs for size, runs in sizes.items()) == count
    assert sum(sizes.values()) == -(-count // 8)
    assert max(sizes) <= 8


@pytest.mark.parametrize(("cpu_rows", "runs"), [(0, 1), (5, 4), (99, 1)])
async def test_runs_on_a_cpu_stay_small(repository: Repository, start: Start, cpu_rows: int, runs: int) -> None:
    """Twenty people at once must not make the process keep the memory of a batch of twenty."""
    repository.affine("m", 2, max_batch_size=16)
    engine = await start(cpu_rows=cpu_rows)
    np.testing.assert_array_equal((await engine.infer("m", {"x": rows(16)}))["y"], 2 * rows(16))
    sizes = engine.statistics()["m"].batch_sizes
    assert max(sizes) <= (cpu_rows or 16)
    assert sum(sizes.values()) == runs
    assert (await engine.metadata("m")).max_batch_size == 16


async def test_no_rows_cost_no_run(repository: Repository, start: Start) -> None:
    repository.affine("m", 2)
    repository.ensemble("e", [("m", {"x": "x"}, {"y": "y"})], ROW, OUT)
    engine = await start()
    for model in ("m", "e"):
        outputs = await engine.infer(model, {"x": rows(0)})
        assert outputs["y"].shape == (0, 3)
        assert outputs["y"].dtype == np.float32
    assert engine.statistics()["m"].runs == 0


async def test_a_model_without_batch_axis(repository: Repository, start: Start) -> None:
    repository.affine("m", 2, max_batch_size=0)
    engine = await start()
    outputs = await engine.infer("m", {"x": np.ones(3, np.float32)})
    np.testing.assert_array_equal(outputs["y"], [2, 2, 2])
    with pytest.raises(ValueError, match=r"must have shape \[3\], got \[1, 3\]"):
        await engine.infer("m", {"x": rows(1)})


@pytest.mark.parametrize("runs", [1, 3])
async def test_fifty_callers_each_get_their_own_answer(repository: Repository, start: Start, runs: int) -> None:
    repository.affine("m", 2, 1, extra="dynamic_batching { max_queue_delay_microseconds: 500 }\n")
    engine = await start(concurrent_runs=runs)

    async def caller(number: int) -> None:
        for turn in range(5):
            x = rows(1 + (number + turn) % 11, start=100 * number + turn)  # some have more than a batch holds
            outputs = await engine.infer("m", {"x": x}, timeout=60)
            np.testing.assert_array_equal(outputs["y"], 2 * x + 1)

    await asyncio.gather(*[caller(number) for number in range(50)])
    counted = engine.statistics()["m"]
    assert counted.requests == 250
    assert counted.runs < counted.parts  # joining happened
    assert max(counted.batch_sizes) <= 8


async def test_a_failing_run_tells_the_model_and_leaves_the_engine_alive(repository: Repository, start: Start) -> None:
    indices = {"x": (FLOAT, [3]), "i": (INT64, [1])}
    nodes = [helper.make_node("GatherElements", ["x", "i"], ["y"], axis=1)]
    repository.network("pick", nodes, indices, {"y": (FLOAT, [1])})
    engine = await start()
    with pytest.raises(InferenceFailed, match=r"model 'pick': .*Out of range"):
        await engine.infer("pick", {"x": rows(1), "i": np.array([[9]])})
    outputs = await engine.infer("pick", {"x": rows(1), "i": np.array([[2]])})
    assert outputs["y"].tolist() == [[2]]
    assert engine.statistics()["pick"].failed_runs == 1
    assert await engine.ready()


async def test_wrong_tensors_are_the_callers_fault(repository: Repository, start: Start) -> None:
    repository.affine("m", 2)
    engine = await start()
    with pytest.raises(ValueError, match="'x' of model 'm' must be float32, got uint8"):
        await engine.infer("m", {"x": np.zeros((1, 3), np.uint8)})
    assert engine.statistics()["m"].requests == 0


async def test_inputs_that_are_not_contiguous(repository: Repository, start: Start) -> None:
    """Views as NumPy makes them (mirrored, strided, read-only) give the right numbers."""
    repository.affine("m", 2)
    engine = await start()
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    x.flags.writeable = False
    for view in (x[:, ::2], x[::-1, :3], x[:, 2::-1], np.asfortranarray(x[:, :3])):
        np.testing.assert_array_equal((await engine.infer("m", {"x": view}))["y"], 2 * view)


async def test_a_single_request_is_not_copied(repository: Repository, start: Start) -> None:
    """Crops of twenty people are megabytes: the arrays go to ONNX Runtime as they are."""
    repository.affine("m", 2, extra=JOIN)
    engine = await start()
    seen: list[int] = []
    network = engine.networks["m"]
    session = network.session

    class Spy:
        def run(self, names: list[str], inputs: dict[str, np.ndarray], options: object) -> object:
            seen.extend(array.ctypes.data for array in inputs.values())
            return session.run(names, inputs, options)

    network.session = Spy()
    x = rows(4)
    await engine.infer("m", {"x": x})
    assert seen == [x.ctypes.data]


async def test_an_answer_leaves_nothing_for_the_collector_of_cycles(repository: Repository, start: Start) -> None:
    """It runs seldom: under load, maps of megabytes that wait for it add up to hundreds."""
    repository.affine("twice", 2)
    steps = [("twice", {"x": "x"}, {"y": "half"}), ("twice", {"x": "half"}, {"y": "y"})]
    repository.ensemble("e", steps, {"x": (FLOAT, [3])}, {"y": (FLOAT, [3])})
    engine = await start()
    gc.collect()
    gc.disable()
    try:
        for count in (2, 20):  # one part, and several
            x = rows(count)
            gone = weakref.ref(x)
            outputs = await engine.infer("e", {"x": x})
            np.testing.assert_array_equal(outputs["y"], 4 * x)
            del x
            await asyncio.sleep(0.05)  # the worker lets go of what it ran
            assert gone() is None
    finally:
        gc.enable()


async def test_order_of_input_names_does_not_matter_for_joining(repository: Repository, start: Start) -> None:
    nodes = [helper.make_node("Sub", ["a", "b"], ["y"])]
    pair = {"a": (FLOAT, ["W"]), "b": (FLOAT, ["W"])}
    text = 'backend: "onnxruntime"\ndynamic_batching { max_queue_delay_microseconds: 5000000 }\n'
    repository.network("sub", nodes, pair, {"y": (FLOAT, ["W"])}, max_batch_size=2, extra=text)
    repository.slow()
    engine = await start()
    a, b = rows(1), rows(1, start=10)
    async with busy(engine):
        answers = await asyncio.gather(engine.infer("sub", {"a": a, "b": b}), engine.infer("sub", {"b": b, "a": a}))
    for answer in answers:
        np.testing.assert_array_equal(answer["y"], a - b)
    assert engine.statistics()["sub"].batch_sizes == {2: 1}


async def test_the_event_loop_stays_free_during_a_run(repository: Repository, start: Start) -> None:
    repository.slow()
    engine = await start()
    task = asyncio.ensure_future(engine.infer("slow", turning(300_000)))
    await asyncio.sleep(0.02)
    ticks = 0
    while not task.done():
        await asyncio.sleep(0.001)
        ticks += 1
    await task
    assert ticks > 10


async def test_a_deadline_ends_a_long_run(repository: Repository, start: Start) -> None:
    """The caller hears at once, and the core is free for the next request instead of minutes later."""
    repository.slow()
    engine = await start()
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await engine.infer("slow", turning(LONG), timeout=0.1)
    assert time.monotonic() - began < 10
    await engine.infer("slow", turning(1), timeout=20)
    assert time.monotonic() - began < 20


async def test_no_time_at_all(repository: Repository, start: Start) -> None:
    repository.slow()
    engine = await start()
    with pytest.raises(DeadlineExceeded):
        await engine.infer("slow", turning(LONG), timeout=0)


async def test_cancelled_callers_leave_nothing_behind(repository: Repository, start: Start) -> None:
    repository.slow(extra=JOIN)
    engine = await start()
    tasks = [asyncio.ensure_future(engine.infer("slow", turning(LONG))) for _ in range(5)]
    await asyncio.sleep(0.05)
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    await engine.infer("slow", turning(1), timeout=20)
    counted = engine.statistics()["slow"]
    assert (counted.abandoned, counted.queued) == (5, 0)


async def test_the_queue_is_bounded_as_the_config_says(repository: Repository, start: Start) -> None:
    repository.slow(extra="dynamic_batching { default_queue_policy { max_queue_size: 2 } }\nmax_batch_size: 1\n")
    path = repository.root / "slow" / "config.pbtxt"
    path.write_text(path.read_text().replace("max_batch_size: 8\n", ""))
    engine = await start()
    tasks = [asyncio.ensure_future(engine.infer("slow", turning(LONG)))]
    await asyncio.sleep(0.05)
    tasks += [asyncio.ensure_future(engine.infer("slow", turning(LONG))) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await engine.infer("slow", turning(1))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await engine.infer("slow", turning(1), timeout=20)


async def test_metadata_is_the_config(repository: Repository, start: Start) -> None:
    repository.affine("m", 2, extra='parameters { key: "kind" value { string_value: "part" } }\n')
    repository.ensemble(
        "e",
        [("m", {"x": "x"}, {"y": "y"})],
        ROW,
        OUT,
        extra='parameters { key: "input_width" value { string_value: "192" } }\n',
    )
    engine = await start()
    assert await engine.models() == ["e", "m"]
    assert (await engine.metadata("m")).parameters == {"kind": "part"}
    ensemble = await engine.metadata("e")
    assert ensemble.parameters == {"input_width": "192"}
    assert ensemble.platform == "ensemble"
    assert [spec.name for spec in ensemble.inputs] == ["x"]
    assert engine.providers == {"m": ("CPUExecutionProvider",)}
    with pytest.raises(ModelNotFound, match="'gone' is not loaded; there are"):
        await engine.metadata("gone")
    with pytest.raises(ModelNotFound):
        await engine.infer("gone", {})


async def test_the_selected_version_answers(repository: Repository, start: Start) -> None:
    text = 'platform: "onnxruntime_onnx"\nversion_policy { specific { versions: [1, 2] } }\n'
    for version, operator in ((1, "Abs"), (2, "Neg"), (3, "Ceil")):
        node = helper.make_node(operator, ["x"], ["y"])
        repository.network("m", [node], ROW, OUT, version=version, extra=text)
    engine = await start()
    assert (await engine.metadata("m")).versions == (1, 2)
    np.testing.assert_array_equal((await engine.infer("m", {"x": rows(2)}))["y"], -rows(2))


async def test_uint8_pictures_pass_through(repository: Repository, start: Start) -> None:
    nodes = [helper.make_node("Transpose", ["images"], ["planes"], perm=[0, 3, 1, 2])]
    repository.network("m", nodes, {"images": (UINT8, [4, 5, 3])}, {"planes": (UINT8, [3, 4, 5])})
    engine = await start()
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    np.testing.assert_array_equal((await engine.infer("m", {"images": images}))["planes"], images.transpose(0, 3, 1, 2))


async def test_start_says_what_is_wrong(repository: Repository, start: Start) -> None:
    with pytest.raises(EngineUnavailable, match="not a folder"):
        await start()
    repository.affine("m", 2)
    repository.ensemble("e", [("gone", {"x": "x"}, {"y": "y"})], ROW, OUT)
    with pytest.raises(EngineUnavailable, match=r"e/config\.pbtxt: step 1 names the model 'gone'"):
        await start()


async def test_before_start_and_after_close_it_is_unavailable(repository: Repository, start: Start) -> None:
    repository.affine("m", 2)
    engine = EmbeddedEngine(repository.root)
    assert not await engine.ready()
    with pytest.raises(EngineUnavailable, match="not started"):
        await engine.infer("m", {"x": rows(1)})
    engine = await start()
    await engine.start()  # a second start changes nothing
    assert await engine.ready()
    await engine.close()
    await engine.close()
    assert not await engine.ready()
    assert engine.statistics() == {}
    for call in (engine.infer("m", {"x": rows(1)}), engine.metadata("m"), engine.start()):
        with pytest.raises(EngineUnavailable, match="closed"):
            await call


async def test_close_finishes_what_runs_ensembles_included(repository: Repository, start: Start) -> None:
    repository.slow_twice()
    engine = await start(drain_seconds=60)
    tasks = [asyncio.ensure_future(engine.infer("e", turning(20_000))) for _ in range(3)]
    await asyncio.sleep(0.01)
    closing = asyncio.ensure_future(engine.close())
    await asyncio.sleep(0)
    with pytest.raises(EngineUnavailable, match="closing"):
        await engine.infer("e", turning(1))
    for task in tasks:
        assert (await task)["y"].shape == (1, 64)
    await closing
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("inference-")]


async def test_close_does_not_wait_for_ever(repository: Repository, start: Start) -> None:
    repository.slow()
    engine = await start(drain_seconds=0.1)
    tasks = [asyncio.ensure_future(engine.infer("slow", turning(LONG))) for _ in range(2)]
    await asyncio.sleep(0.05)
    began = time.monotonic()
    await engine.close()
    assert time.monotonic() - began < 10
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [EngineUnavailable, EngineUnavailable]
    assert time.monotonic() - began < 20  # the run that nobody can answer for any more was ended


async def test_an_idle_engine_keeps_no_pictures(repository: Repository, start: Start) -> None:
    repository.affine("m", 2)
    engine = await start()
    x = rows(4)
    gone = weakref.ref(x)
    await engine.infer("m", {"x": x})
    del x
    await asyncio.sleep(0.05)
    gc.collect()
    assert gone() is None
