"""The pixel budget: large photographs of many callers must not add up to more memory than there is."""

from __future__ import annotations

import asyncio
import random

import pytest

from service.pixel_budget import PixelBudget


async def test_never_more_than_the_budget_and_everyone_gets_through() -> None:
    budget, held, most = PixelBudget(100), 0, 0
    order = random.Random(0)

    async def one(pixels: int) -> None:
        nonlocal held, most
        async with budget.hold(pixels):
            held += min(pixels, 100)
            most = max(most, held)
            await asyncio.sleep(order.random() / 1000)
            held -= min(pixels, 100)

    tasks = [asyncio.ensure_future(one(order.randint(1, 130))) for _ in range(60)]
    for task in order.sample(tasks, 15):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most <= 100
    async with budget.hold(100):
        """All of it came back, also from those who gave up waiting."""


async def test_a_large_one_is_not_overtaken_for_ever() -> None:
    budget, order = PixelBudget(10), []

    async def one(name: str, pixels: int) -> None:
        async with budget.hold(pixels):
            order.append(name)
            await asyncio.sleep(0.001)

    await asyncio.gather(one("first", 6), one("large", 10), one("small", 1))
    assert order == ["first", "large", "small"]


async def test_giving_up_right_after_being_let_in_gives_the_pixels_back() -> None:
    budget = PixelBudget(10)
    first = budget.hold(10)
    await first.__aenter__()

    async def second() -> None:
        async with budget.hold(10):
            raise AssertionError("cancelled before it ran")

    task = asyncio.ensure_future(second())
    await asyncio.sleep(0)
    await first.__aexit__(None, None, None)  # lets the second in ...
    task.cancel()  # ... which is cancelled before it notices
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(budget.hold(10).__aenter__(), 1)
