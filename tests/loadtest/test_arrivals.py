"""The open loop's generator: a rate that is not the one asked for is a measurement of something else."""

from __future__ import annotations

import asyncio
import time

import numpy as np

from loadtest.arrivals import arrive


async def test_arrivals_are_a_poisson_process_that_waits_for_nobody() -> None:
    moments: list[float] = []

    async def one(number: int) -> None:
        moments.append(time.perf_counter())
        await asyncio.sleep(0.3)  # many at a time: no answer is waited for

    arrivals = await arrive(400, 2.0, one, seed=3)
    assert len(moments) == len(arrivals.lateness)
    assert abs(len(moments) - 800) < 4 * np.sqrt(800)
    due = np.sort(np.array(moments)) - arrivals.began
    # Counts in windows of 50 ms vary as a Poisson's do: variance equal to the mean (here within a factor of two).
    counts = np.histogram(due - np.array(sorted(arrivals.lateness))[0], bins=40, range=(0, 2))[0]
    assert 0.3 < counts.var() / counts.mean() < 3
    assert arrivals.ended - arrivals.began == 2.0


async def test_a_generator_that_was_held_up_catches_up_and_says_so() -> None:
    begun = 0

    async def one(number: int) -> None:
        nonlocal begun
        begun += 1
        if number == 0:
            time.sleep(0.5)  # holds the loop

    arrivals = await arrive(200, 1.0, one, seed=1)
    assert begun == len(arrivals.lateness) > 140
    assert max(arrivals.lateness) > 0.4
