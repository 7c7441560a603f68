"""The Triton engine before a real tritonserver: right answers, and true errors, whatever becomes of the server."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.triton.installation import Installation
from deploy.triton.server import TritonServer
from service.engines import triton_memory
from service.engines.triton import TritonEngine, TritonSettings
from service.errors import DeadlineExceeded, EngineUnavailable, InferenceFailed, ModelNotFound, Overloaded
from tests.service.engines.repositories import Repository, rows, turning


def pictures(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), np.uint8)


def region_files() -> list[str]:
    return sorted(name for name in os.listdir(triton_memory.FOLDER) if name.startswith(f"tritonpose-{os.getpid()}-"))


@pytest.fixture
async def engine(small_triton: TritonServer) -> AsyncIterator[TritonEngine]:
    small_triton.start()
    engine = TritonEngine(small_triton.grpc_url)
    await engine.start()
    yield engine
    await engine.close()
    assert region_files() == []


@pytest.mark.parametrize("count", [1, 8, 9, 50])
async def test_any_number_of_rows_is_answered_in_order(engine: TritonEngine, count: int) -> None:
    images = pictures(count)
    np.testing.assert_array_equal((await engine.infer("double", {"x": rows(count)}))["y"], 2 * rows(count))
    np.testing.assert_array_equal(
        (await engine.infer("planes", {"images": images}))["planes"], images.transpose(0, 3, 1, 2)
    )


async def test_a_model_without_batch_axis(engine: TritonEngine) -> None:
    outputs = await engine.infer("flat", {"x": np.ones(3, np.float32)})
    np.testing.assert_array_equal(outputs["y"], [2, 2, 2])


@pytest.mark.parametrize("shared_memory", ["auto", "off"])
async def test_both_ways_of_the_tensors_give_the_same(small_triton: TritonServer, shared_memory: Any) -> None:
    """Views as NumPy makes them (mirrored, strided) too; and what goes which way is counted."""
    engine = TritonEngine(small_triton.grpc_url, TritonSettings(shared_memory=shared_memory))
    await engine.start()
    try:
        images = pictures(12)
        for view in (images[::-1], images[:, :, ::-1], np.asfortranarray(images), images[:2]):
            planes = (await engine.infer("planes", {"images": view}))["planes"]
            np.testing.assert_array_equal(planes, view.transpose(0, 3, 1, 2))
        sent = {"shared_memory": 0, "grpc": 0, **engine.transport.sent_bytes}
        way = "shared_memory" if shared_memory == "auto" else "grpc"
        assert sent == {"shared_memory": 0, "grpc": 0, way: 38 * images[0].nbytes}
        assert engine.transport.shared_memory == (shared_memory == "auto") == bool(region_files())
    finally:
        await engine.close()


async def test_thirty_callers_each_get_their_own_answer(engine: TritonEngine) -> None:
    async def caller(number: int) -> None:
        for turn in range(5):
            images = pictures(1 + (number + turn) % 11, seed=100 * number + turn)
            planes = (await engine.infer("planes", {"images": images}, timeout=60))["planes"]
            np.testing.assert_array_equal(planes, images.transpose(0, 3, 1, 2))

    await asyncio.gather(*[caller(number) for number in range(30)])
    assert engine.transport.calls == {("planes", "ok"): 150}


async def test_a_deadline_ends_the_call_and_not_the_engine(engine: TritonEngine) -> None:
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="'slow'"):
        await engine.infer("slow", turning(200_000), timeout=0.2)
    assert 0.15 < time.monotonic() - began < 1.5
    with pytest.raises(DeadlineExceeded):
        await engine.infer("double", {"x": rows(1)}, timeout=0)
    await engine.infer("slow", turning(1), timeout=60)


async def executions(engine: TritonEngine, model: str) -> int:
    answer = await engine._server.client.get_inference_statistics(model)
    return int(answer.model_stats[0].execution_count)


@pytest.mark.parametrize("model", ["slow", "slow_ensemble"])
async def test_a_full_queue_is_told_at_once(engine: TritonEngine, model: str) -> None:
    blocking = [asyncio.ensure_future(engine.infer(model, turning(150_000))) for _ in range(8)]
    try:
        began = time.monotonic()
        done, _ = await asyncio.wait(blocking, return_when=asyncio.FIRST_EXCEPTION)
        assert time.monotonic() - began < 2
        with pytest.raises(Overloaded, match=f"'{model}': the queue of Triton at .* is full"):
            done.pop().result()
        outcomes = await asyncio.gather(*blocking, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {dict, Overloaded}
        assert engine.transport.calls[model, "overloaded"] == sum(isinstance(one, Overloaded) for one in outcomes)
        assert await engine.ready(), "a full queue is no outage"
    finally:
        for task in blocking:
            task.cancel()


async def test_a_cancelled_call_is_cancelled_at_the_server(engine: TritonEngine) -> None:
    """A caller who hangs up must not cost a run of the network."""
    before = await executions(engine, "slow")
    first = asyncio.ensure_future(engine.infer("slow", turning(1_000_000)))
    await asyncio.sleep(0.2)
    waiting = [asyncio.ensure_future(engine.infer("slow", turning(200_000))) for _ in range(2)]
    await asyncio.sleep(0.2)
    assert not first.done()
    for task in waiting:
        task.cancel()
    assert [type(one) for one in await asyncio.gather(*waiting, return_exceptions=True)] == [asyncio.CancelledError] * 2
    await first
    while True:  # they keep their places in the queue until the server comes to them
        try:
            await engine.infer("slow", turning(1), timeout=60)
            break
        except Overloaded:
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)  # a run is counted after its answer was sent
    assert await executions(engine, "slow") == before + 2


async def test_a_region_that_may_still_be_read_is_not_written(engine: TritonEngine) -> None:
    """The server goes on reading the crops of a call that was cancelled here."""
    regions = engine._regions
    task = asyncio.ensure_future(engine.infer("planes", {"images": pictures(8)}))
    while not engine.transport.sent_bytes:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    (resting,) = regions._resting
    for seed in range(5):
        images = pictures(8, seed)
        np.testing.assert_array_equal(
            (await engine.infer("planes", {"images": images}))["planes"], images.transpose(0, 3, 1, 2)
        )
        assert regions._resting == [resting]
        assert resting not in regions._free
    for _ in range(60):
        await regions.polled(engine._server.client)
    assert resting in regions._free


async def test_a_failing_network_tells_its_name(engine: TritonEngine) -> None:
    with pytest.raises(InferenceFailed, match="model 'pick'"):
        await engine.infer("pick", {"x": rows(1), "i": np.array([[9]])})
    assert (await engine.infer("pick", {"x": rows(1), "i": np.array([[2]])}))["y"].tolist() == [[2]]


async def test_kill_in_the_middle(engine: TritonEngine, small_triton: TritonServer) -> None:
    """Whoever is answered is answered right; all others hear of it within a second; then all is well by itself."""
    images = pictures(8)
    await engine.infer("planes", {"images": images})
    calls = [asyncio.ensure_future(engine.infer("slow", turning(2_000_000), timeout=60)) for _ in range(2)]
    calls += [asyncio.ensure_future(engine.infer("planes", {"images": images}, timeout=60)) for _ in range(20)]
    await asyncio.sleep(0.05)
    pid = small_triton.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 1.5)
    assert {type(one) for one in outcomes} <= {dict, EngineUnavailable}
    assert isinstance(outcomes[0], EngineUnavailable)
    for outcome in outcomes:
        if isinstance(outcome, dict):
            np.testing.assert_array_equal(outcome["planes"], images.transpose(0, 3, 1, 2))
    while time.monotonic() - began < 3:
        asked = time.monotonic()
        with pytest.raises(EngineUnavailable, match=small_triton.grpc_url):
            await engine.infer("planes", {"images": images}, timeout=60)
        with pytest.raises(EngineUnavailable, match=small_triton.grpc_url):
            await engine.ready()
        assert time.monotonic() - asked < 1
        await asyncio.sleep(0.2)
    small_triton.kill()  # in this thread, as the server ends with the thread that started it
    small_triton.start(wait=False)
    while not await asyncio.to_thread(small_triton.poll_ready):
        await asyncio.sleep(0.05)
    returned = time.monotonic()
    while True:
        try:
            outputs = await engine.infer("planes", {"images": images}, timeout=60)
            break
        except EngineUnavailable:
            assert time.monotonic() - returned < 5
            await asyncio.sleep(0.05)
    np.testing.assert_array_equal(outputs["planes"], images.transpose(0, 3, 1, 2))
    assert await engine.ready()
    before = engine.transport.sent_bytes["shared_memory"]
    await engine.infer("planes", {"images": images}, timeout=60)
    assert engine.transport.sent_bytes["shared_memory"] > before, "registered again"


def stand_still(pid: int) -> None:
    """Stop a process; the signal takes its time to reach all threads."""
    os.kill(pid, signal.SIGSTOP)
    while any(
        stat.read_text().rpartition(")")[2].split()[0] != "T" for stat in Path(f"/proc/{pid}/task").glob("*/stat")
    ):
        time.sleep(0.01)


async def test_a_server_that_stands_still(engine: TritonEngine, small_triton: TritonServer) -> None:
    pid = small_triton.pid
    assert pid is not None
    stand_still(pid)
    try:
        began = time.monotonic()
        with pytest.raises(EngineUnavailable, match="does not answer"):
            await engine.ready()
        assert time.monotonic() - began < 2
        with pytest.raises((DeadlineExceeded, EngineUnavailable)):
            await engine.infer("double", {"x": rows(1)}, timeout=0.5)
        assert time.monotonic() - began < 4
        while engine.unavailable is None:
            assert time.monotonic() - began < 12
            await asyncio.sleep(0.1)
        asked = time.monotonic()
        with pytest.raises(EngineUnavailable, match="does not answer"):
            await engine.infer("double", {"x": rows(1)})
        assert time.monotonic() - asked < 0.5
    finally:
        os.kill(pid, signal.SIGCONT)
    returned = time.monotonic()
    while engine.unavailable:
        assert time.monotonic() - returned < 5
        await asyncio.sleep(0.05)
    np.testing.assert_array_equal((await engine.infer("double", {"x": rows(3)}, timeout=60))["y"], 2 * rows(3))


@pytest.mark.parametrize("timeout", [None, 60.0])
async def test_no_call_hangs_at_a_server_that_stands_still(
    engine: TritonEngine, small_triton: TritonServer, timeout: float | None
) -> None:
    """Neither one of ``tritonpose predict``, which sets no deadline, nor one of the service, until its own."""
    pid = small_triton.pid
    assert pid is not None
    call = asyncio.ensure_future(engine.infer("slow", turning(2_000_000), timeout=timeout))
    await asyncio.sleep(0.2)
    stand_still(pid)
    try:
        began = time.monotonic()
        with pytest.raises(EngineUnavailable, match="does not answer"):
            await asyncio.wait_for(call, 40)
        assert time.monotonic() - began < 12, "7.5 s on a machine that is not crowded"
    finally:
        os.kill(pid, signal.SIGCONT)
    while engine.unavailable is not None:
        assert time.monotonic() - began < 60
        await asyncio.sleep(0.05)


async def test_a_new_version_is_seen_while_requests_go_on(
    engine: TritonEngine, small_triton: TritonServer, repository: Repository
) -> None:
    before = await engine.metadata("double")
    assert await engine.metadata("double") is before
    repository.affine("double", 3)
    (repository.root / "double" / "1").rename(small_triton.repository / "double" / "2")
    factors = []
    end = time.monotonic() + 60
    while time.monotonic() < end and not (len(factors) > 1 and (await engine.metadata("double")).versions != (1,)):
        outputs = await engine.infer("double", {"x": np.ones((1, 3), np.float32)}, timeout=30)
        factors.append(float(outputs["y"][0, 0]))
        await asyncio.sleep(0.02)
    assert (await engine.metadata("double")).versions == (2,)
    assert engine.versions()["double"] == 2
    assert (await engine.infer("double", {"x": rows(1)}))["y"].tolist() == (3 * rows(1)).tolist()
    assert set(factors) <= {2.0, 3.0}
    assert factors == sorted(factors)


async def test_a_broken_version_is_told_while_the_old_one_answers(
    engine: TritonEngine, small_triton: TritonServer, repository: Repository
) -> None:
    assert engine.refused is None
    repository.affine("flat", 3, max_batch_size=0)
    (repository.root / "flat" / "1" / "model.onnx").write_bytes(b"no graph")
    (repository.root / "flat" / "1").rename(small_triton.repository / "flat" / "2")
    end = time.monotonic() + 60
    while engine.refused is None:
        assert time.monotonic() < end
        outputs = await engine.infer("flat", {"x": np.ones(3, np.float32)}, timeout=30)
        assert outputs["y"].tolist() == [2, 2, 2]
        await asyncio.sleep(0.05)
    assert "flat version 2: " in engine.refused
    assert "INVALID_PROTOBUF" in engine.refused
    assert (await engine.metadata("flat")).versions == (1,)
    assert await engine.ready()
    shutil.rmtree(small_triton.repository / "flat" / "2")


async def test_close_finishes_what_runs(small_triton: TritonServer) -> None:
    engine = TritonEngine(small_triton.grpc_url)
    await engine.start()
    tasks = [asyncio.ensure_future(engine.infer("slow", turning(50_000))) for _ in range(2)]
    await asyncio.sleep(0.05)
    closing = asyncio.ensure_future(engine.close())
    await asyncio.sleep(0)
    with pytest.raises(EngineUnavailable, match="closed"):
        await engine.infer("double", {"x": rows(1)})
    for task in tasks:
        assert (await task)["y"].shape == (1, 64)
    await closing
    await engine.close()
    with pytest.raises(EngineUnavailable, match="closed"):
        await engine.start()


async def test_close_does_not_wait_for_ever(small_triton: TritonServer) -> None:
    engine = TritonEngine(small_triton.grpc_url, TritonSettings(drain_seconds=0.1))
    await engine.start()
    task = asyncio.ensure_future(engine.infer("slow", turning(300_000)))
    await asyncio.sleep(0.05)
    began = time.monotonic()
    await engine.close()
    assert time.monotonic() - began < 2
    with pytest.raises(EngineUnavailable):
        await task


async def test_a_broken_model_is_named(triton_installation: Installation, tmp_path: Path) -> None:
    repository = Repository(tmp_path / "models")
    repository.affine("good", 2, extra="instance_group { count: 1 kind: KIND_CPU }\n")
    repository.affine("bad", 2)
    (repository.root / "bad" / "1" / "model.onnx").write_bytes(b"no graph")
    server = TritonServer(repository.root, exit_on_error=False, installation=triton_installation)
    engine = TritonEngine(server.grpc_url)
    try:
        server.start(wait=False)  # it never calls itself ready
        end = time.monotonic() + 120
        while True:
            try:
                await engine.start()
                break
            except EngineUnavailable as error:
                assert server.grpc_url in error.detail
                assert time.monotonic() < end, error.detail
                await asyncio.sleep(0.2)
        assert await engine.models() == ["good"]
        with pytest.raises(ModelNotFound, match=r"'bad' .*INVALID_PROTOBUF"):
            await engine.infer("bad", {"x": rows(1)})
        with pytest.raises(EngineUnavailable, match="not ready: bad"):
            await engine.ready()
    finally:
        await engine.close()
        server.close()
