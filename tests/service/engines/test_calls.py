"""Ensembles on the embedded engine: each step begins where the one before it ended, and a failure ends them all."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from onnx import helper

from service.errors import DeadlineExceeded, InferenceFailed
from tests.service.engines.conftest import Start, busy
from tests.service.engines.repositories import FLOAT, INT64, JOIN, LONG, OUT, ROW, Repository, rows, turning


async def test_ensemble_with_the_same_model_twice(repository: Repository, start: Start) -> None:
    """As the flip ensemble: one network on the picture and on its mirror image, then both together."""
    repository.affine("net", 2, 1, extra=JOIN)
    repository.affine("mirror", -1)
    repository.add("both")
    steps = [
        ("mirror", {"x": "picture"}, {"y": "mirrored"}),
        ("net", {"x": "picture"}, {"y": "straight_maps"}),
        ("net", {"x": "mirrored"}, {"y": "mirrored_maps"}),
        ("both", {"a": "straight_maps", "b": "mirrored_maps"}, {"sum": "keypoints"}),
    ]
    repository.ensemble("flip", steps, {"picture": (FLOAT, [3])}, {"keypoints": (FLOAT, [3])})
    engine = await start(concurrent_runs=2)
    x = rows(20, start=7)  # three parts
    outputs = await engine.infer("flip", {"picture": x})
    assert list(outputs) == ["keypoints"]
    np.testing.assert_array_equal(outputs["keypoints"], (2 * x + 1) + (-2 * x + 1))
    assert engine.statistics()["net"].requests == 6
    assert "flip" not in engine.statistics()


async def test_ensemble_of_ensembles_and_several_outputs(repository: Repository, start: Start) -> None:
    repository.affine("times2", 2)
    repository.add()
    repository.ensemble("inner", [("times2", {"x": "in"}, {"y": "out"})], {"in": (FLOAT, [3])}, {"out": (FLOAT, [3])})
    steps = [("inner", {"in": "x"}, {"out": "doubled"}), ("add", {"a": "doubled", "b": "x"}, {"sum": "y"})]
    repository.ensemble("outer", steps, ROW, {"y": (FLOAT, [3]), "doubled": (FLOAT, [3])})
    engine = await start()
    outputs = await engine.infer("outer", {"x": rows(3)})
    np.testing.assert_array_equal(outputs["y"], 3 * rows(3))
    np.testing.assert_array_equal(outputs["doubled"], 2 * rows(3))


async def test_callers_of_an_ensemble_share_its_parts_batches(repository: Repository, start: Start) -> None:
    repository.affine("times2", 2, extra="dynamic_batching { max_queue_delay_microseconds: 5000000 }\n")
    repository.ensemble("e", [("times2", {"x": "x"}, {"y": "y"})], ROW, OUT)
    repository.slow()
    engine = await start()
    async with busy(engine):
        answers = await asyncio.gather(*[engine.infer("e", {"x": rows(2, start=n)}) for n in range(4)])
    for n, answer in enumerate(answers):
        np.testing.assert_array_equal(answer["y"], 2 * rows(2, start=n))
    assert engine.statistics()["times2"].batch_sizes == {8: 1}


async def test_a_step_whose_input_does_not_fit_is_not_the_callers_fault(repository: Repository, start: Start) -> None:
    nodes = [helper.make_node("Concat", ["x", "x"], ["y"], axis=1)]
    repository.network("twice", nodes, {"x": (FLOAT, ["W"])}, {"y": (FLOAT, ["W2"])})
    repository.affine("m", 1)
    steps = [("twice", {"x": "x"}, {"y": "wide"}), ("m", {"x": "wide"}, {"y": "y"})]
    repository.ensemble("e", steps, ROW, OUT)
    engine = await start()
    with pytest.raises(InferenceFailed, match=r"ensemble 'e': input 'x' of model 'm' .* got \[2, 6\]"):
        await engine.infer("e", {"x": rows(2)})


async def test_a_deadline_covers_all_steps_of_an_ensemble(repository: Repository, start: Start) -> None:
    repository.slow_twice()
    engine = await start()
    await engine.infer("e", turning(1), timeout=20)
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="'slow'"):
        await engine.infer("e", turning(LONG), timeout=0.1)
    assert time.monotonic() - began < 10


def two_branches(repository: Repository, *, failing: bool) -> None:
    """One branch takes minutes, the other one picks from its row, which it cannot when it is ``failing``."""
    repository.slow()
    nodes = [helper.make_node("GatherElements", ["x", "i"], ["y"], axis=1)]
    repository.network("pick", nodes, {"x": (FLOAT, [64]), "i": (INT64, [1])}, {"y": (FLOAT, [1])})
    steps = [
        ("slow", {"x": "x", "turns": "turns"}, {"y": "long"}),
        ("pick", {"x": "x", "i": "turns" if failing else "i"}, {"y": "short"}),
    ]
    inputs = {"x": (FLOAT, [64]), "turns": (INT64, [1])} | ({} if failing else {"i": (INT64, [1])})
    repository.ensemble("e", steps, inputs, {"long": (FLOAT, [64]), "short": (FLOAT, [1])})


async def test_a_failing_step_ends_the_others(repository: Repository, start: Start) -> None:
    two_branches(repository, failing=True)
    engine = await start(concurrent_runs=2)
    began = time.monotonic()
    with pytest.raises(InferenceFailed, match=r"model 'pick': .*Out of range"):
        await engine.infer("e", turning(LONG))
    await engine.infer("slow", turning(1), timeout=20)
    assert time.monotonic() - began < 20
    assert engine.statistics()["slow"].abandoned == 1


async def test_cancelling_an_ensemble_ends_its_steps(repository: Repository, start: Start) -> None:
    two_branches(repository, failing=False)
    engine = await start(concurrent_runs=2)
    task = asyncio.ensure_future(engine.infer("e", turning(LONG) | {"i": np.zeros((1, 1), np.int64)}))
    while not (engine.statistics()["slow"].running and engine.statistics()["pick"].runs):
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await engine.infer("slow", turning(1), timeout=20)
    assert engine.statistics()["slow"].abandoned == 1
