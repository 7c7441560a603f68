"""Joins requests to one model that wait at the same time into one run, and hands the rows back.

Worker threads take the work themselves: a worker that gets free picks the oldest request that is due and takes
along what fits into its batch. No step of the event loop lies between two runs, so a busy loop does not leave
the cores idle, and the batches grow by themselves when requests come faster than runs end.

Joining follows Triton's dynamic batcher: up to ``max_batch_size`` rows, equal shapes besides the batch axis, and
the oldest request waits for company at most ``max_queue_delay_microseconds``. Unlike there it does not wait at all
while nothing runs: company then could only come too late, and a lone caller would wait in vain at every model.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from onnxruntime import RunOptions

from service.engines.base import Array, Tensors
from service.engines.config import BatchPolicy
from service.engines.statistics import ModelStatistics
from service.engines.tensors import join_rows
from service.errors import DeadlineExceeded, EngineUnavailable, InferenceFailed, Overloaded, ServiceError
from service.threads import name_thread

# Inputs, options, and whether the run has the cores to itself as it begins.
Run = Callable[[Tensors, RunOptions, bool], dict[str, Array]]
Outputs = dict[str, Array]

logger = logging.getLogger(__name__)


class _Request:
    """One call for one model: a future on the caller's event loop that waits for all its parts."""

    __slots__ = ("future", "loop", "parts", "remaining", "results")

    def __init__(self, loop: asyncio.AbstractEventLoop, parts: Sequence[Tensors], arrived: float, rows: bool) -> None:
        self.loop = loop
        self.future: asyncio.Future[list[Outputs]] = loop.create_future()
        self.parts = [_Part(self, index, part, arrived, rows) for index, part in enumerate(parts)]
        self.results: list[Outputs] = [{} for _ in parts]
        self.remaining = len(parts)

    def deliver(self, index: int, outcome: Outputs | ServiceError) -> None:
        """Called on the event loop with one part's outcome; the first failure fails the request."""
        self.remaining -= 1
        if self.future.done():
            return
        if isinstance(outcome, ServiceError):
            self.future.set_exception(outcome)
            return
        self.results[index] = outcome
        if self.remaining == 0:
            self.future.set_result(self.results)

    def expire(self, model: str) -> None:
        """Called on the event loop at the deadline."""
        if not self.future.done():
            self.future.set_exception(DeadlineExceeded(f"model {model!r} did not answer in time"))


class _Part:
    """What a request puts into the queue: all of it, or one piece of at most ``max_batch_size`` rows."""

    __slots__ = ("arrived", "batch", "index", "inputs", "request", "rows", "shapes")

    def __init__(self, request: _Request, index: int, inputs: Tensors, arrived: float, batched: bool) -> None:
        self.request = request
        self.index = index
        self.inputs = inputs
        self.arrived = arrived
        self.rows = next(iter(inputs.values())).shape[0] if batched else 1
        self.shapes = [array.shape[1:] for array in inputs.values()]
        self.batch: _Batch | None = None


class _Batch:
    """Parts that run together; the run is told to stop once nobody waits for any of them."""

    __slots__ = ("alone", "options", "parts", "queue", "waited_for")

    def __init__(self, queue: _Queue, parts: list[_Part]) -> None:
        self.alone = True
        self.queue = queue
        self.parts = parts
        self.options = RunOptions()
        self.waited_for = len(parts)
        for part in parts:
            part.batch = self

    def abandon(self) -> None:
        self.waited_for -= 1
        if self.waited_for == 0:
            self.options.terminate = True

    def outcomes(self) -> Sequence[Outputs | ServiceError]:
        """Run, and give each part its rows, or its failure."""
        name, batched = self.queue.name, self.queue.policy.max_rows > 0
        rows = sum(part.rows for part in self.parts)
        try:
            outputs = self.queue.run(join_rows([part.inputs for part in self.parts]), self.options, self.alone)
            for output, array in outputs.items():
                if batched and array.shape[:1] != (rows,):
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


class _Queue:
    """The waiting parts of one model."""

    def __init__(self, name: str, run: Run, policy: BatchPolicy, statistics: ModelStatistics) -> None:
        self.name = name
        self.run = run
        self.policy = policy
        self.waiting: deque[_Part] = deque()
        self.statistics = statistics

    def due(self) -> float:
        """When the oldest part may run beside others: at once, or after the delay unless its batch is full before."""
        head, policy = self.waiting[0], self.policy
        if not (policy.joins and policy.delay):
            return head.arrived
        rows = sum(part.rows for part in self.waiting if part.shapes == head.shapes)
        return head.arrived if rows >= policy.max_rows else head.arrived + policy.delay

    def take(self) -> _Batch:
        """Remove the oldest part and, where joining is on, those of equal shape behind it that fit."""
        head = self.waiting.popleft()
        parts, rows = [head], head.rows
        if self.policy.joins and self.waiting:
            left: deque[_Part] = deque()
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
        return _Batch(self, parts)


class BatchScheduler:
    """Queues of all models before a fixed number of worker threads.

    Oldest request first over all models. ``instances`` of a policy bounds the runs of one model at a time.
    """

    def __init__(self, workers: int) -> None:
        self._queues: dict[str, _Queue] = {}
        self._statistics: dict[str, ModelStatistics] = {}
        self._running: set[_Batch] = set()
        self._changed = threading.Condition()  # guards all of the above, part.batch and the statistics
        self._stopping = False
        # Daemons: a program that forgets close() can still end.
        self._threads = [
            threading.Thread(target=self._work, name=f"inference-{i}", daemon=True) for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """True while every worker runs."""
        return not self._stopping and all(thread.is_alive() for thread in self._threads)

    def add(self, name: str, run: Run, policy: BatchPolicy, key: str | None = None) -> None:
        """Serve a model. ``run`` is called in a worker thread with the joined inputs.

        Its last argument is False when another run is in progress or waits: what then takes all cores for itself
        only gets in the other's way.

        Two versions of a model may be served at a time under different keys (the name when None); they are counted
        together, and the policy's ``instances`` are for both.
        """
        with self._changed:
            counted = self._statistics.setdefault(name, ModelStatistics())
            self._queues[key or name] = _Queue(name, run, policy, counted)

    def remove(self, key: str) -> None:
        """Serve this no more. Whoever still waits for it is told that it is gone; a run in progress ends well."""
        with self._changed:
            queue = self._queues.pop(key)
            leftover, queue.waiting = list(queue.waiting), deque()
        for part in leftover:
            _post(part, EngineUnavailable(f"model {queue.name!r} has been replaced"))

    async def run(self, key: str, parts: Sequence[Tensors], deadline: float | None) -> list[Outputs]:
        """Queue one request and wait for its outputs, one dict for each part.

        Args:
            key: of an added model.
            parts: the request cut into pieces of at most ``max_rows`` rows.
            deadline: by the event loop's clock; None for no limit.

        Raises:
            Overloaded, DeadlineExceeded, InferenceFailed, EngineUnavailable (stopped). When the caller is cancelled
            the parts leave the queue, and a run that nobody waits for any more is ended early.
        """
        loop = asyncio.get_running_loop()
        queue = self._queues[key]
        request = _Request(loop, parts, time.monotonic(), queue.policy.max_rows > 0)
        self._submit(queue, request)
        timer = loop.call_at(deadline, request.expire, queue.name) if deadline is not None else None
        try:
            return await request.future
        finally:
            if timer is not None:
                timer.cancel()
            if request.remaining:
                self._abandon(queue, request)

    def statistics(self) -> dict[str, ModelStatistics]:
        """Snapshots by model."""
        with self._changed:
            for counted in self._statistics.values():
                counted.queued = 0
            for queue in self._queues.values():
                queue.statistics.queued += len(queue.waiting)
            return {queue.name: queue.statistics.copy() for queue in self._queues.values()}

    def stop(self, drain: float) -> None:
        """Work off what waits for at most ``drain`` seconds, then refuse and end the rest. Blocks."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        end = time.monotonic() + drain
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        with self._changed:
            leftover = [part for queue in self._queues.values() for part in queue.waiting]
            for queue in self._queues.values():
                queue.waiting.clear()
            for batch in self._running:
                batch.options.terminate = True
        for part in leftover:
            _post(part, EngineUnavailable("the engine is closed"))

    def _submit(self, queue: _Queue, request: _Request) -> None:
        with self._changed:
            if self._stopping:
                raise EngineUnavailable("the engine is closed")
            # A request of several parts needs one free place, or it could never be taken by a short queue.
            if queue.policy.max_queue and len(queue.waiting) >= queue.policy.max_queue:
                queue.statistics.rejected += 1
                raise Overloaded(f"model {queue.name!r}: {len(queue.waiting)} requests wait already")
            queue.statistics.requests += 1
            queue.waiting.extend(request.parts)
            self._changed.notify(len(request.parts))

    def _abandon(self, queue: _Queue, request: _Request) -> None:
        with self._changed:
            queue.statistics.abandoned += 1
            queue.waiting = deque(part for part in queue.waiting if part.request is not request)
            for part in request.parts:
                if part.batch is not None:
                    part.batch.abandon()

    def _work(self) -> None:
        name_thread("inference")
        # One call for each batch: an idle worker must not keep the last pictures alive in its variables.
        while self._run_next():
            pass

    def _run_next(self) -> bool:
        """Wait for a batch, run it, hand the answers out; False when the scheduler has stopped."""
        batch = self._next_batch()
        if batch is None:
            return False
        started = time.monotonic()
        outcomes = batch.outcomes()
        self._record(batch, started, time.monotonic() - started, isinstance(outcomes[0], InferenceFailed))
        for part, outcome in zip(batch.parts, outcomes, strict=True):
            _post(part, outcome)
        return True

    def _next_batch(self) -> _Batch | None:
        """Wait for a batch that is due; None when the scheduler stops and nothing waits."""
        with self._changed:
            while True:
                now = time.monotonic()
                oldest, wait = self._choose(now)
                if oldest is not None:
                    batch = oldest.take()
                    oldest.statistics.running += 1
                    waiting = any(queue.waiting for queue in self._queues.values())
                    batch.alone = not waiting and not self._running
                    self._running.add(batch)
                    if waiting:
                        self._changed.notify()  # this worker may have been the one that waited for those
                    return batch
                if self._stopping and not any(queue.waiting for queue in self._queues.values()):
                    self._changed.notify_all()
                    return None
                self._changed.wait(wait)

    def _choose(self, now: float) -> tuple[_Queue | None, float | None]:
        """The queue whose head is due and oldest; else how long until one is due (None: until something changes)."""
        oldest: _Queue | None = None
        wait: float | None = None
        for queue in self._queues.values():
            policy = queue.policy
            while queue.waiting and policy.queue_timeout and now - queue.waiting[0].arrived > policy.queue_timeout:
                _post(queue.waiting.popleft(), DeadlineExceeded(f"model {queue.name!r}: waited too long in the queue"))
            if not queue.waiting or (policy.instances and queue.statistics.running >= policy.instances):
                continue
            due = queue.due() if self._running and not self._stopping else now
            if due > now:
                wait = due - now if wait is None else min(wait, due - now)
            elif oldest is None or queue.waiting[0].arrived < oldest.waiting[0].arrived:
                oldest = queue
        return oldest, wait

    def _record(self, batch: _Batch, started: float, seconds: float, failed: bool) -> None:
        statistics, rows = batch.queue.statistics, sum(part.rows for part in batch.parts)
        with self._changed:
            self._running.discard(batch)
            for part in batch.parts:
                part.batch = None
                statistics.queue_seconds += started - part.arrived
            statistics.parts += len(batch.parts)
            statistics.running -= 1
            statistics.runs += 1
            statistics.failed_runs += failed
            statistics.compute_seconds += seconds
            statistics.rows += rows
            statistics.batch_sizes[rows] += 1


def _post(part: _Part, outcome: Outputs | ServiceError) -> None:
    """Hand an outcome to the caller's event loop; a loop that is closed has no caller left."""
    try:
        part.request.loop.call_soon_threadsafe(part.request.deliver, part.index, outcome)
    except RuntimeError:
        logger.debug("an answer came after its event loop was closed")
