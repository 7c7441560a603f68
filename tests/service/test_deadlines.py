"""Deadlines: what a caller may ask for, and that work ends with them."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from service.deadlines import finish_within, read_timeout
from service.errors import ClientGone, DeadlineExceeded, InvalidOption
from service.settings import Settings


async def forever() -> None:
    await asyncio.Event().wait()


def test_the_header_is_decimal_seconds_within_bounds() -> None:
    settings = Settings(deadline_seconds=30, max_deadline_seconds=60)
    assert read_timeout(None, settings) == 30
    assert read_timeout("2.5", settings) == 2.5
    assert read_timeout(" 60 ", settings) == 60
    assert read_timeout("0.001", settings) == 0.001
    longer = Settings(deadline_seconds=300, max_deadline_seconds=60)
    assert read_timeout("300", longer) == 300, "what everybody gets may be asked for"


@pytest.mark.parametrize(
    "value", ["", "0", "0.0", "-1", "61", "1e9", "nan", "inf", "2s", "500ms", "1,5", "0x10", "9" * 5000, "٣", "1 2"]
)
def test_anything_else_is_named(value: str) -> None:
    with pytest.raises(InvalidOption, match="X-Request-Timeout") as caught:
        read_timeout(value, Settings(max_deadline_seconds=60))
    assert repr(value.strip()[:50]) in caught.value.detail
    assert "at most 60" in caught.value.detail


async def test_the_answer_in_time_is_the_answer() -> None:
    async def work() -> str:
        await asyncio.sleep(0.001)
        return "done"

    assert await finish_within(work(), 5, forever()) == "done"


async def test_work_is_cancelled_when_its_time_is_up_or_its_caller_gone() -> None:
    cancelled = []

    async def work(name: str) -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            cancelled.append(name)
            raise

    async def hang_up() -> None:
        await asyncio.sleep(0.005)

    with pytest.raises(DeadlineExceeded, match="7 s"):
        await finish_within(work("late"), 0.01, forever(), asked=7)
    with pytest.raises(ClientGone):
        await finish_within(work("alone"), 5, hang_up())
    assert cancelled == ["late", "alone"]


async def test_work_whose_time_is_up_already_is_not_begun() -> None:
    begun = []

    async def work() -> None:
        begun.append(True)
        await forever()

    with pytest.raises(DeadlineExceeded):
        await finish_within(work(), -1, forever())
    assert len(begun) <= 1  # its first step may run, up to where it waits for its turn


async def test_an_error_of_the_work_is_the_error() -> None:
    async def work() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await finish_within(work(), 5, forever())


@pytest.mark.parametrize("steps", range(1, 7))
async def test_who_is_cancelled_leaves_nothing_behind(steps: int) -> None:
    """At whatever moment: a task that waits for a caller to hang up would stay as long as his connection."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    async def work() -> None:
        raise KeyError("x")

    outer = asyncio.ensure_future(finish_within(work(), 5, forever()))
    for _ in range(steps):
        await asyncio.sleep(0)
    outer.cancel()
    with pytest.raises((asyncio.CancelledError, KeyError)):
        await outer
    await asyncio.sleep(0.01)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    del outer
    gc.collect()
    assert not complaints
