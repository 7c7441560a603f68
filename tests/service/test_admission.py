"""Admission: under overload some are told to come back, at once, and those inside keep their pace."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest

from service.admission import BYTES, Admission
from service.callers import Caller
from service.errors import Overloaded, RateLimited
from service.settings import Settings
from service.stages import Stages


def caller(name: str = "somebody") -> Caller:
    return Caller(name, 0.0)


def in_seconds(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


def at_pace(admission: Admission, seconds_per_row: float, rows: float = 1.0) -> None:
    """Let it learn from requests that ran one after the other."""
    now = 0.0
    for _ in range(200):
        mark = admission.pace.begin(now)
        now += seconds_per_row * rows
        admission.pace.end(now, mark, rows, answered=True)


def nothing_is_left(admission: Admission) -> None:
    assert admission.held == [0, 0, 0, 0]
    assert (admission.admitted, admission.running, admission.waiting) == (0, 0, 0)
    assert not admission._visits
    assert len(admission._queue) == 0


async def run(admission: Admission, who: Caller, work: float = 0.0, seconds: float = 60.0) -> None:
    with admission.enter(who, in_seconds(seconds)) as visit:
        async with visit.turn(Stages()):
            await asyncio.sleep(work)


async def test_the_queue_is_bounded_and_gives_its_places_back() -> None:
    admission, somebody, deadline = Admission(Settings(max_running=1, max_waiting=1)), caller(), in_seconds(60)
    with admission.enter(somebody, deadline), admission.enter(somebody, deadline):
        with pytest.raises(Overloaded) as caught, admission.enter(somebody, deadline):
            raise AssertionError("a third one must not get in")
        assert caught.value.retry_after is not None
        assert caught.value.retry_after >= 1
        assert caught.value.reason == "queue-full"
        assert admission.admitted == 2
    with admission.enter(somebody, deadline):
        assert admission.waiting == 1
    nothing_is_left(admission)
    assert somebody.held == [0, 0, 0, 0]


async def test_no_more_run_than_may() -> None:
    admission = Admission(Settings(max_running=2, max_waiting=20))
    most = 0

    async def request() -> None:
        nonlocal most
        stages = Stages()
        with admission.enter(caller(), in_seconds(60)) as visit:
            async with visit.turn(stages):
                most = max(most, admission.running)
                await asyncio.sleep(0.005)
        assert "queue" in stages.seconds

    await asyncio.gather(*(request() for _ in range(10)))
    assert most == 2
    nothing_is_left(admission)


async def test_bytes_pixels_and_people_of_all_together_are_bounded() -> None:
    limits = Settings(
        max_waiting_bytes=100, max_body_bytes=100, max_waiting_pixels=1000, max_waiting_people=10, max_images=9
    )
    admission, deadline = Admission(limits), in_seconds(60)
    one = caller()
    with admission.enter(one, deadline) as first, admission.enter(one, deadline) as second:
        first.hold_bytes(60)
        second.hold_bytes(40)
        with pytest.raises(Overloaded) as caught:
            second.hold_bytes(1)
        assert caught.value.reason == "queue-bytes"
        first.weigh(pictures=1, pixels=600, people=5)
        with pytest.raises(Overloaded) as caught:
            second.weigh(pictures=1, pixels=401, people=5)
        assert caught.value.reason == "queue-pixels"
        with pytest.raises(Overloaded) as caught:
            second.weigh(pictures=1, pixels=400, people=6)
        assert caught.value.reason == "queue-people"
    nothing_is_left(admission)
    with admission.enter(one, deadline) as visit:
        visit.weigh(pictures=9, pixels=10**9, people=100)  # nothing else is there: it gets in
    nothing_is_left(admission)


async def test_a_declared_body_that_has_no_room_need_not_travel() -> None:
    admission, deadline = Admission(Settings(max_waiting_bytes=100, max_body_bytes=100)), in_seconds(60)
    greedy, modest = caller(), caller()
    with admission.enter(greedy, deadline) as first, admission.enter(greedy, deadline) as second:
        first.hold_bytes(60)
        second.expect_bytes(40)
        with pytest.raises(Overloaded):
            second.expect_bytes(41)
        with admission.enter(modest, deadline) as other:
            other.expect_bytes(41)  # the greedy one will give way
        assert admission.held[BYTES] == 60, "what is declared holds nothing: it may never come"


async def test_retry_after_is_the_work_ahead_at_the_measured_pace() -> None:
    admission, somebody = Admission(Settings(max_running=1, max_waiting=500)), caller()
    at_pace(admission, seconds_per_row=2.0)
    assert admission._retry_after(somebody) == 2
    tasks = [asyncio.ensure_future(run(admission, somebody, 60)) for _ in range(5)]
    await asyncio.sleep(0.01)
    # Four wait (8 s), and then it would be his own turn (2 s).
    assert 10 <= admission._retry_after(somebody) <= 12
    assert admission._retry_after(caller()) <= 5, "somebody else is served after one of them"
    tasks += [asyncio.ensure_future(run(admission, somebody, 60, seconds=1e6)) for _ in range(200)]
    await asyncio.sleep(0.01)
    assert admission._retry_after(somebody) == 60
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    nothing_is_left(admission)


async def test_a_greedy_caller_cannot_starve_another() -> None:
    """Sixty requests of one are there before the first of the other: who is served when?"""
    admission = Admission(Settings(max_running=1, max_waiting=100))
    greedy, modest = caller("greedy"), caller("modest")
    served: list[str] = []

    async def request(who: Caller) -> None:
        with admission.enter(who, in_seconds(60)) as visit:
            async with visit.turn(Stages()):
                served.append(who.name)
                await asyncio.sleep(0)

    tasks = [asyncio.ensure_future(request(greedy)) for _ in range(60)]
    await asyncio.sleep(0)
    tasks += [asyncio.ensure_future(request(modest)) for _ in range(5)]
    await asyncio.gather(*tasks)
    assert [n for n, name in enumerate(served) if name == "modest"][-1] < 15
    nothing_is_left(admission)


async def test_large_photographs_count_as_the_work_that_they_are() -> None:
    """50 megapixels take a hundred times as long to decode as a small picture: turns are shared by work."""
    admission = Admission(Settings(max_running=1, max_waiting=100))
    photographer, modest = caller("photographer"), caller("modest")
    served: list[str] = []

    async def request(who: Caller, pixels: int) -> None:
        with admission.enter(who, in_seconds(600)) as visit:
            visit.weigh(pictures=1, pixels=pixels, people=2)
            async with visit.turn(Stages()):
                served.append(who.name)
                await asyncio.sleep(0)

    tasks = [asyncio.ensure_future(request(photographer, 50_000_000)) for _ in range(10)]
    tasks += [asyncio.ensure_future(request(modest, 300_000)) for _ in range(20)]
    await asyncio.gather(*tasks)
    # One of them is 28 rows, the others have 3.15 each.
    last = [n for n, name in enumerate(served) if name == "modest"][-1]
    assert served[:last].count("photographer") <= 5
    with admission.enter(modest, in_seconds(600)) as visit:
        visit.weigh(pictures=1, pixels=300_000, people=2)
        small = visit.rows
        visit.weigh(pictures=1, pixels=50_000_000, people=2)
        assert 8 * small < visit.rows < 10 * small
    nothing_is_left(admission)


async def test_a_full_queue_makes_room_for_somebody_else() -> None:
    """One caller alone may fill it; then the newest of his that wait give way, until both hold the same."""
    admission = Admission(Settings(max_running=1, max_waiting=5))
    greedy, modest = caller(), caller()
    outcomes: Counter[str] = Counter()
    release = asyncio.Event()

    async def request(who: Caller, name: str) -> None:
        try:
            with admission.enter(who, in_seconds(60)) as visit:
                async with visit.turn(Stages()):
                    await release.wait()
            outcomes[f"{name} answered"] += 1
        except Overloaded as refusal:
            outcomes[f"{name} {refusal.reason}"] += 1

    tasks = [asyncio.ensure_future(request(greedy, "greedy")) for _ in range(6)]
    await asyncio.sleep(0.01)
    tasks += [asyncio.ensure_future(request(modest, "modest")) for _ in range(6)]
    await asyncio.sleep(0.01)
    assert admission.admitted == 6
    release.set()
    await asyncio.gather(*tasks)
    assert outcomes == {
        "greedy answered": 3, "greedy queue-share": 3, "modest answered": 3, "modest queue-full": 3
    }  # fmt: skip
    nothing_is_left(admission)


async def test_a_body_on_its_way_is_told_that_it_gave_way() -> None:
    admission = Admission(Settings(max_running=1, max_waiting=1))
    slow, quick = caller(), caller()
    with admission.enter(slow, in_seconds(60)), admission.enter(slow, in_seconds(60)) as arriving:
        arriving.hold_bytes(10)
        assert not arriving.refused.done()
        with admission.enter(quick, in_seconds(60)):
            assert arriving.refused.done()
            with pytest.raises(Overloaded) as caught:
                arriving.hold_bytes(1)
            assert caught.value.reason == "queue-share"
            with pytest.raises(Overloaded):
                async with arriving.turn(Stages()):
                    raise AssertionError("its place belongs to somebody else")
            assert admission.admitted == 2
    nothing_is_left(admission)


async def test_who_runs_does_not_give_way() -> None:
    admission = Admission(Settings(max_running=2, max_waiting=0))
    tasks = [asyncio.ensure_future(run(admission, caller("a"), 0.2))]
    who = caller("b")
    tasks.append(asyncio.ensure_future(run(admission, who, 0.2)))
    await asyncio.sleep(0.01)
    with pytest.raises(Overloaded), admission.enter(caller("c"), in_seconds(60)):
        raise AssertionError("both places are taken by requests that run")
    await asyncio.gather(*tasks)


async def test_who_leaves_while_waiting_leaves_the_queue_at_once() -> None:
    admission, somebody = Admission(Settings(max_running=1, max_waiting=10)), caller()
    tasks = [asyncio.ensure_future(run(admission, somebody, 60)) for _ in range(4)]
    await asyncio.sleep(0.01)
    assert (admission.running, len(admission._queue)) == (1, 3)
    tasks[2].cancel()
    await asyncio.sleep(0.01)
    assert (admission.running, len(admission._queue), admission.admitted) == (1, 2, 3)
    tasks[0].cancel()
    await asyncio.sleep(0.01)
    assert (admission.running, len(admission._queue), admission.admitted) == (1, 1, 2)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    nothing_is_left(admission)


async def test_a_turn_given_to_somebody_who_is_gone_goes_to_the_next() -> None:
    admission, somebody = Admission(Settings(max_running=1, max_waiting=10)), caller()
    release, ran = asyncio.Event(), []

    async def request(name: str) -> None:
        with admission.enter(somebody, in_seconds(60)) as visit:
            async with visit.turn(Stages()):
                ran.append(name)
                await release.wait()

    first, second, third = (asyncio.ensure_future(request(name)) for name in ("first", "second", "third"))
    await asyncio.sleep(0.01)
    # The first ends, so that the second is let in, and goes before it notices.
    asyncio.get_running_loop().call_soon(first.cancel)
    while admission._queue.ahead(somebody) > 1.5 * admission.pace.mean_rows:
        await asyncio.sleep(0)
    second.cancel()
    await asyncio.sleep(0.01)
    assert ran == ["first", "third"]
    release.set()
    await asyncio.gather(first, second, third, return_exceptions=True)
    nothing_is_left(admission)


async def test_callers_without_patience_do_not_change_what_others_are_told() -> None:
    """Each gives up long before the time expected, which says nothing of how long it would have taken."""
    admission, somebody = Admission(Settings(max_running=1, max_waiting=100)), caller()
    at_pace(admission, seconds_per_row=5.0)
    before = (admission.pace._ratio, admission.pace._spread)
    for _ in range(20):
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(run(admission, somebody, work=60, seconds=0.001), 0.005)
    assert (admission.pace._ratio, admission.pace._spread) == before
    nothing_is_left(admission)


async def test_what_cannot_be_done_in_time_is_refused_at_once() -> None:
    admission, somebody = Admission(Settings(max_running=1, max_waiting=100)), caller()
    at_pace(admission, seconds_per_row=0.5)
    with admission.enter(somebody, in_seconds(0.01)) as visit:
        async with visit.turn(Stages()):  # nothing runs: the estimate may be wrong, and only trying tells
            with admission.enter(somebody, in_seconds(2)):
                pass
            with pytest.raises(Overloaded) as caught, admission.enter(somebody, in_seconds(0.5)):
                raise AssertionError("it could not have been answered")
            assert caught.value.reason == "queue-deadline"
            assert "0.50 s left" in caught.value.detail
            with admission.enter(somebody, in_seconds(4)) as large, pytest.raises(Overloaded):
                large.weigh(pictures=20, pixels=1, people=0)
    nothing_is_left(admission)


async def test_a_turn_that_comes_too_late_is_not_taken() -> None:
    """The queue moved slower than was thought: work that cannot end in time would only hold up the others."""
    admission, somebody = Admission(Settings(max_running=2, max_waiting=10)), caller()
    at_pace(admission, seconds_per_row=0.02)
    tasks = [asyncio.ensure_future(run(admission, somebody, work)) for work in (0.1, 60)]
    late = asyncio.ensure_future(run(admission, somebody, seconds=0.12))
    await asyncio.sleep(0.01)
    admission.pace._seconds *= 10
    with pytest.raises(Overloaded) as caught:
        await late
    assert caught.value.reason == "queue-deadline"
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    nothing_is_left(admission)


async def test_requests_of_one_caller_in_flight_are_bounded() -> None:
    admission, limited = Admission(Settings()), caller()
    limited.limit(rate=0, burst=0, concurrency=2)
    with admission.enter(limited, in_seconds(60)), admission.enter(limited, in_seconds(60)):
        with pytest.raises(RateLimited, match="2 requests") as caught, admission.enter(limited, in_seconds(60)):
            raise AssertionError("a third one must not get in")
        assert caught.value.reason == "concurrency"
        with admission.enter(caller(), in_seconds(60)):
            pass


async def test_a_refusal_costs_little() -> None:
    """Ten times as many requests as can be served: nine of ten take this way."""
    admission = Admission(Settings(max_running=8, max_waiting=64))
    callers = [caller(str(n)) for n in range(72)]
    tasks = [asyncio.ensure_future(run(admission, who, 60)) for who in callers]
    await asyncio.sleep(0.1)
    best = float("inf")
    for _ in range(20):
        started = time.thread_time()
        for _ in range(20):
            with pytest.raises(Overloaded), admission.enter(callers[0], in_seconds(60)):
                raise AssertionError("it is full")
        best = min(best, (time.thread_time() - started) / 20)
    assert best < 500e-6
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    nothing_is_left(admission)


async def test_the_mean_of_people_stands_for_pictures_not_looked_at_yet() -> None:
    admission = Admission(Settings())
    for _ in range(100):
        admission.pace.found(pictures=1, people=5)
    assert admission.expected_people(pictures=10, most=20) in (50, 51)
    assert admission.expected_people(pictures=10, most=1) == 10
