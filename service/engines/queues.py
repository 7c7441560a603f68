"""What waits for a model: callers, their requests in parts of a batch's size at most, and what is run together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from onnxruntime import RunOptions

from service.engines.base import Array, Tensors
from service.engines.config import BatchPolicy
from service.engines.statistics import ModelStatistics
from service.engines.tensors import join_rows
from service.errors import DeadlineExceeded, EngineUnavailable, InferenceFailed, ServiceError

# Inputs, options, and whether the run has the cores to itself as it begins.
Run = Callable[[Tensors, RunOptions, bool], dict[str, Array]]
Outputs = dict[str, Array]
# Takes a request's outputs, one dict for each part, or why it failed.
Done = Callable[[list[Outputs] | ServiceError], None]

logger = logging.getLogger(__name__)


class Scheduler(Protocol):
    """Whoever runs a caller's requests."""

    def abandon(self, caller: Caller) -> None:
        """Drop what is left of the caller's requests."""

    def waiting_for(self, caller: Caller) -> list[str]:
        """Names of the models that the caller waits for now."""


class Caller:
    """Who waits, on an event loop, for one answer that takes one or more requests to the worker threads.

    Attributes:
        live: its requests that have not ended. Guarded by the scheduler's lock, as is ``gone``.
        gone: it waits no more.
    """

    __slots__ = ("_answered", "_future", "_loop", "_scheduler", "gone", "live")

    def __init__(self, scheduler: Scheduler) -> None:
        """For one call of :meth:`answer`, on the running event loop."""
        self.live: set[Request] = set()
        self.gone = False
        self._scheduler = scheduler
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[Any] = self._loop.create_future()
        self._answered = False

    def finish(self, outcome: object) -> None:
        """End the wait with an answer, or with a failure where it is an exception; in any thread. The first counts."""
        try:
            self._loop.call_soon_threadsafe(self._deliver, outcome)
        except RuntimeError:  # a loop that is closed has no caller left
            logger.debug("an answer came after its event loop was closed")

    async def answer(self, name: str, deadline: float | None) -> Any:
        """Wait for :meth:`finish`.

        When this is cancelled, fails or takes too long, the requests that are left leave their queues, and a run that
        nobody waits for any more is ended early.

        Args:
            name: of the model, for the message of DeadlineExceeded, which names the networks that are late if any are.
            deadline: by the event loop's clock; None for no limit.
        """
        timer = self._loop.call_at(deadline, self._expire, name) if deadline is not None else None
        try:
            return await self._future
        finally:
            if timer is not None:
                timer.cancel()
            if not self._answered:
                self._scheduler.abandon(self)

    def _deliver(self, outcome: object) -> None:
        if self._future.done():
            return
        if isinstance(outcome, Exception):
            self._future.set_exception(outcome)
        else:
            self._answered = True
            self._future.set_result(outcome)

    def _expire(self, name: str) -> None:
        late = self._scheduler.waiting_for(self) or [name]
        self._deliver(DeadlineExceeded(f"model {' and '.join(map(repr, late))} did not answer in time"))


class Request:
    """One call for one model, of one or more parts; ``done`` is called once, in a worker thread.

    Attributes:
        since: when the work began that it is a step of (``time.monotonic``); by itself, when it arrived.
    """

    __slots__ = ("caller", "done", "parts", "queue", "remaining", "results", "since")

    def __init__(self, caller: Caller, queue: Queue, parts: Sequence[Tensors], done: Done, since: float | None) -> None:
        now, batched = time.monotonic(), queue.policy.max_rows > 0
        self.since = now if since is None else since
        self.caller = caller
        self.queue = queue
        self.done = done
        self.parts = [Part(self, index, part, now, batched) for index, part in enumerate(parts)]
        self.results: list[Outputs] = [{} for _ in parts]
        self.remaining = len(parts)


class Part:
    """What a request puts into the queue: all of it, or one piece of at most ``max_batch_size`` rows."""

    __slots__ = ("arrived", "batch", "index", "inputs", "request", "rows", "shapes")

    def __init__(self, request: Request, index: int, inputs: Tensors, arrived: float, batched: bool) -> None:
        self.request = request
        self.index = index
        self.inputs = inputs
        self.arrived = arrived
        self.rows = next(iter(inputs.values())).shape[0] if batched else 1
        self.shapes = [array.shape[1:] for array in inputs.values()]
        self.batch: Batch | None = None


class Job:
    """Work of a caller that is no network's: pixels, between two networks or before the first."""

    __slots__ = ("caller", "since", "work")

    def __init__(self, caller: Caller, work: Callable[[], None]) -> None:
        """``work`` finishes the caller, or submits what does."""
        self.caller = caller
        self.since = time.monotonic()
        self.work = work

    def run(self) -> None:
        """Do it, unless nobody waits for it any more."""
        if self.caller.gone:
            return
        try:
            self.work()
        except Exception as error:  # a worker outlives whatever its callers do
            logger.exception("work on pixels failed")
            self.caller.finish(error)


class Batch:
    """Parts that run together; the run is told to stop once nobody waits for any of them."""

    __slots__ = ("alone", "options", "parts", "queue", "rows", "waited_for")

    def __init__(self, queue: Queue, parts: list[Part], rows: int) -> None:
        """``rows``: of all parts together."""
        self.alone = True
        self.queue = queue
        self.parts = parts
        self.rows = rows
        self.options = RunOptions()
        self.waited_for = len(parts)
        for part in parts:
            part.batch = self

    def abandon(self) -> None:
        """One part is waited for no more; with the scheduler's lock."""
        self.waited_for -= 1
        if self.waited_for == 0:
            self.options.terminate = True

    def outcomes(self) -> Sequence[Outputs | ServiceError]:
        """Run, and give each part its rows, or its failure."""
        name, rows = self.queue.name, self.rows
        try:
            outputs = self.queue.run(join_rows([part.inputs for part in self.parts]), self.options, self.alone)
            if self.queue.policy.max_rows > 0:
                for output, array in outputs.items():
                    if array.ndim == 0 or len(array) != rows:
                        raise ValueError(f"output {output!r} of {rows} rows has shape {list(array.shape)}")
        except Exception as error:  # whatever the runtime raises concerns these requests only
            if self.options.terminate:  # nobody waits any more, or the engine is closed under the callers
                return [EngineUnavailable("the engine is closed") for _ in self.parts]
            logger.error("model %s failed on a batch of %d rows: %s", name, rows, error)
            return [InferenceFailed(f"model {name!r}: {error}") for _ in self.parts]
        if len(self.parts) == 1:
            return [outputs]
        split, first = [], 0
        for part in self.parts:
            split.append({output: array[first : first + part.rows] for output, array in outputs.items()})
            first += part.rows
        return split


class Queue:
    """The waiting parts of one model."""

    def __init__(self, name: str, run: Run, policy: BatchPolicy, statistics: ModelStatistics) -> None:
        self.name = name
        self.run = run
        self.policy = policy
        self.waiting: deque[Part] = deque()
        self.statistics = statistics

    @property
    def oldest(self) -> float:
        """Since when what the request at the head belongs to is under way."""
        return self.waiting[0].request.since

    def has_room(self) -> bool:
        """Whether one more run of the model may begin."""
        return not self.policy.instances or self.statistics.running < self.policy.instances

    def due(self) -> float:
        """When the oldest part may run beside others: at once, or after the delay unless its batch is full before."""
        head, policy = self.waiting[0], self.policy
        if not (policy.joins and policy.delay):
            return head.arrived
        rows = sum(part.rows for part in self.waiting if part.shapes == head.shapes)
        return head.arrived if rows >= policy.max_rows else head.arrived + policy.delay

    def take(self) -> Batch:
        """Remove the oldest part and, where joining is on, those of equal shape behind it that fit."""
        head = self.waiting.popleft()
        parts, rows = [head], head.rows
        if self.policy.joins and self.waiting:
            left: deque[Part] = deque()
            for position, part in enumerate(self.waiting):
                if part.shapes == head.shapes:
                    if rows + part.rows > self.policy.max_rows:  # no overtaking among equals
                        left.extend(list(self.waiting)[position:])
                        break
                    parts.append(part)
                    rows += part.rows
                else:
                    left.append(part)
            self.waiting = left
        return Batch(self, parts, rows)
