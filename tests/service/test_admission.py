"""Admission: under overload some are told to come back, at once, and those inside keep their pace."""

from __future__ import annotations

import asyncio

import pytest

from service.admission import Admission, finish_within
from service.errors import ClientGone, DeadlineExceeded, Overloaded
from service.settings import Settings
from service.stages import Stages


async def forever() -> None:
    await asyncio.Event().wait()


async def test_the_queue_is_bounded_and_gives_its_places_back() -> None:
    admission = Admission(Settings(max_running=1, max_waiting=1))
    with admission.enter(), admission.enter():
        with pytest.raises(Overloaded) as caught, admission.enter():
            raise AssertionError("a third one must not get in")
        assert caught.value.retry_after is not None
        assert caught.value.retry_after >= 1
        assert admission.admitted == 2
    assert admission.admitted == 0
    with admission.enter():
        assert admission.waiting == 1


async def test_no_more_run_than_may() -> None:
    admission = Admission(Settings(max_running=2, max_waiting=20))
    most = 0

    async def request() -> None:
        nonlocal most
        stages = Stages()
        with admission.enter() as visit:
            async with visit.turn(stages):
                most = max(most, admission.running)
                await asyncio.sleep(0.005)
        assert "queue" in stages.seconds

    await asyncio.gather(*(request() for _ in range(10)))
    assert most == 2
    assert (admission.running, admission.admitted) == (0, 0)


async def test_bytes_of_all_bodies_are_bounded() -> None:
    admission = Admission(Settings(max_waiting_bytes=100, max_body_bytes=100))
    with admission.enter() as first, admission.enter() as second:
        first.hold(60)
        second.hold(40)
        with pytest.raises(Overloaded):
            second.hold(1)
    with admission.enter() as visit:
        visit.hold(100)


async def test_retry_after_follows_the_pace() -> None:
    admission = Admission(Settings(max_running=1, max_waiting=100))
    for _ in range(100):
        admission.finished(2.0)
    admission.admitted = 5
    assert 8 <= admission.retry_after() <= 10
    admission.admitted = 100_000
    assert admission.retry_after() == 60


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

    with pytest.raises(DeadlineExceeded):
        await finish_within(work("late"), 0.01, forever())
    with pytest.raises(ClientGone):
        await finish_within(work("alone"), 5, hang_up())
    assert cancelled == ["late", "alone"]


async def test_an_error_of_the_work_is_the_error() -> None:
    async def work() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await finish_within(work(), 5, forever())
