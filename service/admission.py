"""The gate before the pipeline: who gets in, who is next, and who is told to come back.

A queue without a bound turns overload into timeouts for everyone. Here it is bounded four times (requests, bytes of
their bodies, pixels to decode, people to pose), and the request that finds it full is told at once (429 with
Retry-After), before its body is read; those inside keep their pace.

Callers are served in turn (:mod:`service.fair_queue`). A single caller may fill the queue while nobody else is there;
when somebody else comes, the newest waiting request of whoever holds most gives way.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from service.callers import Caller
from service.errors import Overloaded
from service.fair_queue import FairQueue
from service.pace import Pace
from service.settings import Settings
from service.stages import Stages

# What is counted, by its place in Caller.held, Visit.held and Admission.held.
REQUESTS, BYTES, PIXELS, PEOPLE = range(4)
_NAMES = ("requests", "bytes of bodies", "pixels", "people")
_REASONS = ("queue-full", "queue-bytes", "queue-pixels", "queue-people")
_MAX_RETRY_SECONDS = 60.0
# A request whose turn comes with less than this part of the time it needs is given up before any work is done on it.
_HOPELESS = 0.5
# Pixels that take as long to decode as a network needs for a row: 8 ms (12 megapixels of JPEG: 50 ms), and 7 ms on the
# two cores of the README's figures.
_PIXELS_OF_A_ROW = 2_000_000


class Admission:
    """Counts the requests of one process. All methods run on the event loop."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._running_limit = settings.max_running
        self._limits = (
            float(settings.max_running + settings.max_waiting),
            float(max(settings.max_waiting_bytes, settings.max_body_bytes)),
            float(settings.max_waiting_pixels),
            float(settings.max_waiting_people),
        )
        self._queue: FairQueue[Caller, Visit] = FairQueue()
        self._visits: dict[Caller, list[Visit]] = {}  # in the order of their arrival
        self.pace = Pace()
        self.held = [0.0, 0.0, 0.0, 0.0]
        self.running = 0

    @property
    def admitted(self) -> int:
        """Requests in flight: arriving, waiting or running."""
        return int(self.held[REQUESTS])

    @property
    def waiting(self) -> int:
        """Requests whose body arrives or that wait for their turn."""
        return self.admitted - self.running

    def enter(self, caller: Caller, deadline: float) -> Visit:
        """Be counted from before the body is read until the answer is made.

        Args:
            caller: whose request it is.
            deadline: by the event loop's clock.

        Returns:
            for a ``with`` statement, which ends the visit.

        Raises:
            RateLimited: the caller has as many requests in flight as he may.
            Overloaded: no place is free, or the queue is longer than the deadline allows.
        """
        caller.check_concurrency(lambda: self._retry_after(caller))
        visit = Visit(self, caller, deadline)
        visit.check_deadline()
        visit.hold(REQUESTS, 1)
        self._visits.setdefault(caller, []).append(visit)
        return visit

    def expected_people(self, pictures: int, most: int) -> int:
        """People that pictures of which nothing is known will hold, at most ``most`` in each.

        The mean of recent pictures, since this bounds time and not memory (crops are cut only for requests that run):
        the most that each could hold, 20 unless asked otherwise, would call a queue of 5 pictures full of 100 people.
        """
        return math.ceil(pictures * min(float(most), self.pace.people_per_picture))

    def estimate(self, caller: Caller, rows: float) -> float:
        """Seconds until a request of that many rows would be answered, were it this caller's last in the queue.

        Requests that run share the machine, so each takes as long as all that run beside it.
        """
        beside = min(self._running_limit, self.running + len(self._queue) + 1)
        return (self._queue.ahead(caller) + beside * rows) * self.pace.seconds_per_row

    def _retry_after(self, caller: Caller) -> float:
        """Seconds until the queue as it stands has been worked off for this caller; at least one."""
        return min(_MAX_RETRY_SECONDS, max(1.0, math.ceil(self.estimate(caller, self.pace.mean_rows))))

    def _refusal(self, kind: int, caller: Caller) -> Overloaded:
        detail = f"{self.held[kind]:.0f} {_NAMES[kind]} are in flight; at most {self._limits[kind]:.0f} may be"
        return Overloaded(detail, retry_after=self._retry_after(caller), reason=_REASONS[kind])

    def _make_room(self, kind: int, caller: Caller, amount: float) -> bool:
        """Whether that much more fits in, after those who hold most gave way if it is not this caller."""
        need = self.held[kind] + amount - self._limits[kind]
        # What alone is more than the limit is let in when nothing else is there, so nobody is refused for ever.
        if need <= 0 or not self.held[kind]:
            return True
        richest = self._richest(kind, caller)
        leave: list[Visit] = []
        left = richest.held[kind]
        for visit in reversed(self._visits.get(richest, ())):
            if need <= 0 or left <= caller.held[kind] + amount:
                break
            if visit.held[kind] and not visit.runs:
                leave.append(visit)
                left -= visit.held[kind]
                need -= visit.held[kind]
        if need > 0:
            return False
        for visit in leave:
            visit.give_way()
        return True

    def _richest(self, kind: int, caller: Caller) -> Caller:
        return max(self._visits, key=lambda one: one.held[kind], default=caller)

    def _next(self) -> None:
        """Let those run whose turn it is."""
        while self.running < self._running_limit and (visit := self._queue.take()) is not None:
            if visit.begin():
                self.running += 1


class Visit:
    """One request from its head to its answer.

    Attributes:
        caller: whose it is.
        deadline: by the event loop's clock.
        held: its requests (1), bytes, pixels and people.
        rows: of work that it is expected to be.
        runs: it has had its turn.
        refused: done once the visit has given way to another caller's; :meth:`check` then raises.
    """

    def __init__(self, admission: Admission, caller: Caller, deadline: float) -> None:
        self._admission = admission
        self._loop = asyncio.get_running_loop()
        self._turn: asyncio.Future[None] | None = None
        self._mark = 0.0
        self._expected, self._since = 0.0, 0.0
        self.caller = caller
        self.deadline = deadline
        self.held = [0.0, 0.0, 0.0, 0.0]
        self.rows = admission.pace.mean_rows
        self.runs = False
        self.refused: asyncio.Future[None] = self._loop.create_future()

    def __enter__(self) -> Visit:
        """Counted already."""
        return self

    def __exit__(self, *error: object) -> None:
        """The answer is made, or will not be."""
        self.leave()

    def hold(self, kind: int, amount: float) -> None:
        """Count requests, bytes, pixels or people until the visit ends. Raises Overloaded when they are too many."""
        self.check()
        if not self._admission._make_room(kind, self.caller, amount):
            raise self._admission._refusal(kind, self.caller)
        for held in (self.held, self.caller.held, self._admission.held):
            held[kind] += amount

    def expect_bytes(self, declared: int) -> None:
        """Raises Overloaded when a body of that many bytes cannot be held, and nobody else's would give way to it."""
        admission, total = self._admission, declared + self._admission.held[BYTES]
        if total > admission._limits[BYTES] and admission._richest(BYTES, self.caller) is self.caller:
            raise admission._refusal(BYTES, self.caller)

    def hold_bytes(self, number: int) -> None:
        """Count bytes of the body. Raises Overloaded."""
        self.hold(BYTES, number)

    def weigh(self, pictures: int, pixels: int, people: int, rows_for_one: int = 1) -> None:
        """Count what the headers of the pictures tell, before one of them is decoded.

        Args:
            pictures: that a detector is to look at.
            pixels: to decode.
            people: expected in them, or given.
            rows_for_one: how often each of them goes through the network.

        Raises:
            Overloaded: too many pixels or people, or the deadline cannot be kept.
        """
        self.rows = max(1.0, pictures + people * rows_for_one + pixels / _PIXELS_OF_A_ROW)
        self.check_deadline()
        self.hold(PIXELS, pixels)
        self.hold(PEOPLE, people)

    def check(self) -> None:
        """Raises Overloaded when the visit had to give way."""
        if self.refused.done():
            raise Overloaded(
                "the queue is full, and others hold less of it than this caller",
                retry_after=self._admission._retry_after(self.caller),
                reason="queue-share",
            )

    def check_deadline(self) -> None:
        """Raises Overloaded when the queue is too long for the time left.

        Never while nothing runs: then the estimate can only be wrong, and only a request that runs can put it right.
        """
        now = self._loop.time()
        self._expected, self._since = self._admission.estimate(self.caller, self.rows), now
        # A 429 now serves better than a 504 later.
        if self._admission.running and self._expected * self._admission.pace.safety > self.deadline - now:
            raise self._too_late(self.deadline - now)

    def turn(self, stages: Stages) -> AbstractAsyncContextManager[None]:
        """Wait until it is this visit's turn and fewer than ``max_running`` run; the wait is the stage ``queue``.

        Raises:
            Overloaded: it gave way, or its turn came too late for the deadline.
        """
        return _Turn(self, stages)

    def _end(self, error: BaseException | None) -> None:
        """What had its turn has ended, well or with an error."""
        admission, answered = self._admission, error is None
        if isinstance(error, Overloaded) and error.retry_after is None:
            # A network's own queue is full: the way through ours is as long.
            error.retry_after = admission._retry_after(self.caller)
        admission.running -= 1
        admission.pace.end(admission._clock(), self._mark, self.rows, answered)
        if answered:
            self._compare()
        else:
            self._compare_late()
        admission._next()

    async def _wait(self) -> None:
        self.check()
        admission = self._admission
        self._turn = self._loop.create_future()
        admission._queue.put(self.caller, self, self.rows)
        admission._next()
        try:
            await self._turn
        except asyncio.CancelledError:
            self._compare_late()
            if not admission._queue.remove(self.caller, self) and self.runs:  # let in and cancelled at once
                admission.running -= 1
                admission.pace.end(admission._clock(), self._mark, self.rows, answered=False)
                admission._next()
            raise

    def begin(self) -> bool:
        """It is this visit's turn. False when it does not take it."""
        assert self._turn is not None
        if self._turn.done():
            return False
        left = self.deadline - self._loop.time()
        needed = self.rows * self._admission.pace.seconds_per_row * min(
            self._admission._running_limit, self._admission.running + 1
        )  # fmt: skip
        if self._admission.running and left < _HOPELESS * needed:
            self._compare()
            self._turn.set_exception(self._too_late(left))
            return False
        self.runs = True
        self._mark = self._admission.pace.begin(self._admission._clock())
        self._turn.set_result(None)
        return True

    def _compare(self) -> None:
        """Learn from the time since the estimate how good it was."""
        self._admission.pace.took(self._expected, self._loop.time() - self._since)

    def _compare_late(self) -> None:
        now = self._loop.time()
        # One given up sooner than it was expected to end tells nothing of how long it would have taken.
        if now >= self.deadline and now - self._since > self._expected:
            self._compare()

    def give_way(self) -> None:
        """Leave in favour of another caller's request; what was held is free at once."""
        if not self.refused.done():
            self.refused.set_result(None)
        if self._admission._queue.remove(self.caller, self) and self._turn is not None and not self._turn.done():
            try:
                self.check()
            except Overloaded as refusal:
                self._turn.set_exception(refusal)
        self.leave()

    def leave(self) -> None:
        """Give back what is held."""
        for kind, amount in enumerate(self.held):
            self.caller.held[kind] -= amount
            self._admission.held[kind] -= amount
        self.held = [0.0, 0.0, 0.0, 0.0]
        visits = self._admission._visits.get(self.caller, [])
        if self in visits:
            visits.remove(self)
            if not visits:
                del self._admission._visits[self.caller]

    def _too_late(self, left: float) -> Overloaded:
        return Overloaded(
            f"{self._admission.waiting} requests wait: no answer is likely within the {max(0.0, left):.2f} s left",
            retry_after=self._admission._retry_after(self.caller),
            reason="queue-deadline",
        )


class _Turn:
    """A block of :meth:`Visit.turn`. A class: see :class:`service.stages.Measured`."""

    __slots__ = ("_stages", "_visit")

    def __init__(self, visit: Visit, stages: Stages) -> None:
        self._visit = visit
        self._stages = stages

    async def __aenter__(self) -> None:
        with self._stages.measure("queue"):
            await self._visit._wait()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._visit._end(error)
