"""A model of the batcher's tests, and callers of it.

It is a Python function that waits for the test's permission, so that what waits is known exactly.
"""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
from onnxruntime import RunOptions

from service.engines.base import Array, Tensors
from service.engines.batching import BatchScheduler
from service.engines.config import BatchPolicy
from service.engines.queues import Caller
from service.engines.tensors import join_rows
from service.errors import ServiceError

JOIN = BatchPolicy(max_rows=8, joins=True)


class Gated:
    """Doubles ``x``; each run is written down and waits until ``open`` is set."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.runs: list[list[float]] = []
        self.options: list[RunOptions] = []
        self.alone: list[bool] = []
        self.fail_on: float | None = None
        self.at_a_time = 0
        self.most_at_a_time = 0
        self._lock = threading.Lock()

    def __call__(self, inputs: Tensors, options: RunOptions, alone: bool = True) -> dict[str, Array]:
        x = inputs["x"]
        with self._lock:
            self.runs.append(x.reshape(-1).tolist())
            self.options.append(options)
            self.alone.append(alone)
            self.at_a_time += 1
            self.most_at_a_time = max(self.most_at_a_time, self.at_a_time)
        assert self.open.wait(10)
        with self._lock:
            self.at_a_time -= 1
        if self.fail_on is not None and self.fail_on in x:
            raise RuntimeError(f"no {self.fail_on}")
        return {"y": x * 2}

    async def started(self, runs: int = 1) -> None:
        """Wait until that many runs have begun."""
        end = time.monotonic() + 10
        while len(self.runs) < runs:
            assert time.monotonic() < end, f"{len(self.runs)} of {runs} runs began"
            await asyncio.sleep(0.001)


def rows(*values: float) -> dict[str, Array]:
    return {"x": np.array(values, np.float32)[:, None]}


def ask(
    scheduler: BatchScheduler, *values: float, name: str = "m", timeout: float | None = None
) -> asyncio.Task[list[float]]:
    """A caller with one request; its answer as a list."""

    async def call() -> list[float]:
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        outputs = await answer(scheduler, name, [rows(*values)], deadline)
        return [float(value) for value in outputs["y"].reshape(-1)]

    return asyncio.ensure_future(call())


async def answer(
    scheduler: BatchScheduler, name: str, parts: list[dict[str, Array]], deadline: float | None = None
) -> dict[str, Array]:
    """What one caller gets for one request, its parts joined."""
    caller = Caller(scheduler)

    def done(outcome: list[dict[str, Array]] | ServiceError) -> None:
        caller.finish(outcome if isinstance(outcome, ServiceError) else join_rows(outcome))

    scheduler.submit(caller, name, parts, done)
    return await caller.answer(name, deadline)


async def block(scheduler: BatchScheduler, model: Gated) -> asyncio.Task[list[float]]:
    """Keep the only worker busy until ``model.open`` is set."""
    model.open.clear()
    task = ask(scheduler, 0)
    await model.started()
    return task
