"""Ten times more requests than can be served, in simulated time: who is answered, and how long they waited.

A machine that does a number of rows a second, shared among the requests that run; Poisson arrivals that do not wait
for answers; requests of different sizes, whose number of people nobody knows before they ran. The admission under test
is the real one, on an event loop whose clock jumps to the next event.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass, field

import pytest

from service.admission import Admission
from service.callers import Caller
from service.deadlines import finish_within
from service.errors import DeadlineExceeded, Overloaded
from service.settings import Settings
from service.stages import Stages

ROWS_A_SECOND = 60.0
# A picture and the people in it: two at the mean, as in the pictures of the bench.
PEOPLE = (0, 1, 1, 1, 2, 2, 3, 3, 5)
ROWS = 1 + sum(PEOPLE) / len(PEOPLE)


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop that does not wait: its clock goes to the next timer at once."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self._now = max(self._now, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


class Machine:
    """Rows in turn: of all requests that wait for one, each gets one, then each the next."""

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self.done = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._task = asyncio.ensure_future(self._work())

    async def row(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        await turn

    def stop(self) -> None:
        self._task.cancel()

    async def _work(self) -> None:
        while True:
            while not self._waiting:
                await asyncio.sleep(0.001)
            turn = self._waiting.popleft()
            if not turn.cancelled():
                await asyncio.sleep(1 / self.speed)
                self.done += 1
                if not turn.done():
                    turn.set_result(None)


@dataclass
class Outcome:
    """What became of the requests after the first seconds, in which the pace is learnt."""

    answered: dict[str, list[float]] = field(default_factory=dict)
    refused: list[float] = field(default_factory=list)
    late: int = 0
    rows: int = 0


async def flood(
    admission: Admission,
    machine: Machine,
    load: dict[str, float],
    *,
    deadline: float,
    seconds: float,
    settle: float,
) -> Outcome:
    """``load`` is the arrivals of each caller as a multiple of what the machine can do."""
    loop, draw, outcome = asyncio.get_running_loop(), random.Random(3), Outcome()
    callers = {name: Caller(name, 0.0) for name in load}
    tasks: set[asyncio.Task[None]] = set()

    async def forever() -> None:
        await asyncio.Event().wait()

    async def request(name: str) -> None:
        began, people = loop.time(), draw.choice(PEOPLE)
        counts = began >= settle
        try:
            with admission.enter(callers[name], began + deadline) as visit:
                visit.weigh(1, 300_000, admission.expected_people(1, 20))

                async def work() -> None:
                    async with visit.turn(Stages()):
                        for _ in range(1 + people):
                            await machine.row()

                await finish_within(work(), deadline, forever())
            admission.pace.found(1, people)
            if counts:
                outcome.answered.setdefault(name, []).append(loop.time() - began)
                outcome.rows += 1 + people
        except Overloaded:
            if counts:
                outcome.refused.append(loop.time() - began)
        except DeadlineExceeded:
            outcome.late += counts

    rate = sum(load.values()) * ROWS_A_SECOND / ROWS
    names, weights = list(load), list(load.values())
    while loop.time() < seconds:
        await asyncio.sleep(draw.expovariate(rate))
        task = asyncio.ensure_future(request(draw.choices(names, weights)[0]))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return outcome


def simulate(
    load: dict[str, float], deadline: float, seconds: float = 40, settle: float = 5, **settings: int
) -> Outcome:
    loop = JumpingLoop()
    try:

        async def run() -> Outcome:
            admission = Admission(Settings(**settings), clock=loop.time)  # type: ignore[arg-type]
            machine = Machine(ROWS_A_SECOND)
            outcome = await flood(admission, machine, load, deadline=deadline, seconds=seconds, settle=settle)
            machine.stop()
            assert admission.held == [0, 0, 0, 0]
            return outcome

        return loop.run_until_complete(run())
    finally:
        loop.close()


def quantile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


@pytest.mark.parametrize("deadline", [30.0, 3.0, 1.0])
def test_ten_times_too_much_is_served_at_the_full_pace_within_the_deadline(deadline: float) -> None:
    """With the default deadline the queue is what bounds the wait, with short ones the estimate is."""
    outcome = simulate({"all": 10.0}, deadline)
    answered = outcome.answered["all"]
    assert outcome.rows >= 0.93 * ROWS_A_SECOND * 35, "goodput"
    assert quantile(answered, 0.99) <= deadline
    assert outcome.late <= 0.015 * len(answered), "a 504 is work thrown away"
    assert quantile(outcome.refused, 0.95) == 0.0, "at once"
    assert len(outcome.refused) > 8 * len(answered)


def test_below_the_pace_nobody_is_refused() -> None:
    outcome = simulate({"all": 0.7}, 5.0)
    assert outcome.late == 0
    assert len(outcome.refused) <= 0.005 * len(outcome.answered["all"])


def test_a_flood_of_one_leaves_another_his_share() -> None:
    """One sends ten times what the machine can do, the other a third of it: the other does not feel it much."""
    outcome = simulate({"greedy": 10.0, "modest": 0.3}, 10.0)
    modest, greedy = outcome.answered["modest"], outcome.answered["greedy"]
    asked = 0.3 * ROWS_A_SECOND / ROWS * 35
    assert len(modest) >= 0.95 * asked * 0.9
    assert outcome.rows >= 0.9 * ROWS_A_SECOND * 35
    assert quantile(modest, 0.95) < 0.5 * quantile(greedy, 0.5)


def test_two_floods_share_the_machine() -> None:
    outcome = simulate({"ten": 10.0, "three": 3.0}, 10.0)
    ten, three = len(outcome.answered["ten"]), len(outcome.answered["three"])
    assert abs(ten - three) <= 0.15 * (ten + three)
