"""The gate before the pipeline: how many requests run, how many wait, and when one has taken too long.

A queue without a bound turns overload into timeouts for everyone. Here the request that finds the queue full is
told at once (429 with Retry-After), before its body is read; those inside keep their pace.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from service.errors import ClientGone, DeadlineExceeded, Overloaded
from service.settings import Settings
from service.stages import Stages

Result = TypeVar("Result")

# Weight of the newest request in the running mean of service times behind Retry-After.
_NEWEST = 0.1
_MAX_RETRY_SECONDS = 60.0


class Admission:
    """Counts the requests of one process. All methods run on the event loop."""

    def __init__(self, settings: Settings) -> None:
        self._running_limit = settings.max_running
        self._limit = settings.max_running + settings.max_waiting
        self._byte_limit = max(settings.max_waiting_bytes, settings.max_body_bytes)
        self._seconds = 0.1
        self._bytes = 0
        self.turns = asyncio.Semaphore(settings.max_running)
        self.admitted = 0
        self.running = 0

    @property
    def waiting(self) -> int:
        """Requests whose body arrives or that wait for their turn."""
        return self.admitted - self.running

    @contextmanager
    def enter(self) -> Iterator[Visit]:
        """Be counted from before the body is read until the answer is made. Raises Overloaded."""
        if self.admitted >= self._limit:
            raise Overloaded(f"{self.admitted} requests are in flight or wait", retry_after=self.retry_after())
        visit = Visit(self)
        self.admitted += 1
        try:
            yield visit
        finally:
            self.admitted -= 1
            self._bytes -= visit.held

    def retry_after(self) -> float:
        """Seconds until the queue as it stands is worked off, at the recent pace; at least one."""
        return min(_MAX_RETRY_SECONDS, max(1.0, math.ceil(self._seconds * self.admitted / self._running_limit)))

    def hold(self, number: int) -> None:
        """Count bytes of a body. Raises Overloaded when all bodies together are too many bytes."""
        if self._bytes + number > self._byte_limit:
            raise Overloaded(f"requests in flight hold {self._bytes} bytes", retry_after=self.retry_after())
        self._bytes += number

    def finished(self, seconds: float) -> None:
        """Learn the pace from a request that ran."""
        self._seconds += _NEWEST * (seconds - self._seconds)


class Visit:
    """One admitted request."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.held = 0

    def hold(self, number: int) -> None:
        """Count bytes of the body until the visit ends. Raises Overloaded."""
        self._admission.hold(number)
        self.held += number

    @asynccontextmanager
    async def turn(self, stages: Stages) -> AsyncIterator[None]:
        """Wait until fewer than ``max_running`` requests run, then count as one; the wait is the stage ``queue``."""
        admission = self._admission
        with stages.measure("queue"):
            await admission.turns.acquire()
        started = time.perf_counter()
        admission.running += 1
        try:
            yield
        finally:
            admission.running -= 1
            admission.turns.release()
            admission.finished(time.perf_counter() - started)


async def finish_within(work: Coroutine[Any, Any, Result], seconds: float, gone: Coroutine[Any, Any, None]) -> Result:
    """The result of ``work``, unless its time is up or the caller has gone: then it is cancelled.

    Args:
        work: makes the answer.
        seconds: how long it may take.
        gone: ends when nobody waits for the answer any more.

    Raises:
        DeadlineExceeded: the time is up.
        ClientGone: the caller hung up.
    """
    task, hang_up = asyncio.ensure_future(work), asyncio.ensure_future(gone)
    try:
        await asyncio.wait((task, hang_up), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if hang_up.done():
            raise ClientGone("the caller hung up before the answer")
        raise DeadlineExceeded(f"no answer within {seconds:g} s")
    finally:
        for pending in (task, hang_up):
            if not pending.done():
                pending.cancel()
        await asyncio.gather(task, hang_up, return_exceptions=True)
