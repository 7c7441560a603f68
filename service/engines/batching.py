"""Joins requests to one model that wait at the same time into one run, and hands the rows back.

Worker threads take the work themselves: a worker that gets free picks the oldest request that is due and takes
along what fits into its batch. No step of the event loop lies between two runs, nor between two steps of an ensemble,
so a busy loop does not leave the cores idle, and the batches grow by themselves when requests come faster than runs
end.

Joining follows Triton's dynamic batcher: up to ``max_batch_size`` rows, equal shapes besides the batch axis, and
the oldest request waits for company at most ``max_queue_delay_microseconds``. Unlike there it does not wait at all
while nothing runs: company then could only come too late, and a lone caller would wait in vain at every model.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from service.engines.base import Tensors
from service.engines.config import BatchPolicy
from service.engines.queues import Batch, Caller, Done, Job, Outputs, Part, Queue, Request, Run
from service.engines.statistics import ModelStatistics
from service.errors import DeadlineExceeded, EngineUnavailable, InferenceFailed, Overloaded, ServiceError
from service.threads import name_thread

# Requests that have ended, with what their callers are to be told.
Ended = list[tuple[Request, list[Outputs] | ServiceError]]

logger = logging.getLogger(__name__)


class BatchScheduler:
    """Queues of all models before a fixed number of worker threads.

    Oldest work first over all models, and a step of an ensemble is as old as its first: what has been begun is ended
    before something else is, so fewer maps wait in memory, and they are still in the caches. ``instances`` of a policy
    bounds the runs of one model at a time.
    """

    def __init__(self, workers: int) -> None:
        self._queues: dict[str, Queue] = {}
        self._lined: dict[Queue, None] = {}  # queues in which something waits, or did a moment ago
        self._statistics: dict[str, ModelStatistics] = {}
        self._jobs: deque[Job] = deque()
        self._running: set[Batch | Job] = set()
        self._lock = threading.RLock()  # guards all of the above, part.batch and the statistics
        self._changed = threading.Condition(self._lock)
        self._stopping = False
        # Daemons: a program that forgets close() can still end.
        self._threads = [
            threading.Thread(target=self._work, name=f"inference-{i}", daemon=True) for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()
        self._workers = {thread.ident for thread in self._threads}

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
        with self._lock:
            counted = self._statistics.setdefault(name, ModelStatistics())
            self._queues[key or name] = Queue(name, run, policy, counted)

    def remove(self, key: str) -> None:
        """Serve this no more. Whoever still waits for it is told that it is gone; a run in progress ends well."""
        with self._lock:
            queue = self._queues.pop(key)
            self._lined.pop(queue, None)
            error = EngineUnavailable(f"model {queue.name!r} has been replaced")
            ended = self._end_all(queue, error)
        _hand_over(ended)

    def submit(
        self, caller: Caller, key: str, parts: Sequence[Tensors], done: Done, since: float | None = None
    ) -> None:
        """Queue one request, in any thread. One of a caller that has gone is dropped.

        Args:
            caller: on whose behalf.
            key: of an added model.
            parts: the request cut into pieces of at most ``max_rows`` rows.
            done: called once in a worker thread, unless the caller goes before. May submit the next request. Where a
                worker submits to a model that runs ``at_once``, it is called before this returns.
            since: ``time.monotonic`` at the start of the work that this is a step of; None for now.

        Raises:
            Overloaded, EngineUnavailable (stopped, or the model has been replaced).
        """
        with self._lock:
            queue = self._queues.get(key)
            if self._stopping or queue is None:
                raise EngineUnavailable("the engine is closed" if self._stopping else f"{key} has been replaced")
            if caller.gone:
                return
            policy = queue.policy
            here = policy.at_once and len(parts) == 1 and threading.get_ident() in self._workers and queue.has_room()
            # A request of several parts needs one free place, or it could never be taken by a short queue.
            if not here and policy.max_queue and len(queue.waiting) >= policy.max_queue:
                queue.statistics.rejected += 1
                raise Overloaded(f"model {queue.name!r}: {len(queue.waiting)} requests wait already")
            request = Request(caller, queue, parts, done, since)
            caller.live.add(request)
            queue.statistics.requests += 1
            if here:
                batch = Batch(queue, request.parts, request.parts[0].rows)
                self._begin(batch, self._waiting())
            else:
                queue.waiting.extend(request.parts)
                self._lined[queue] = None
                self._changed.notify(len(request.parts))
                return
        self._run(batch)

    def call(self, caller: Caller, work: Callable[[], None]) -> None:
        """Have a worker do something for a caller, in its turn; dropped when the caller goes before.

        Args:
            caller: on whose behalf.
            work: finishes the caller, or submits what does. Holds its worker meanwhile: milliseconds.

        Raises:
            EngineUnavailable: stopped.
        """
        with self._lock:
            if self._stopping:
                raise EngineUnavailable("the engine is closed")
            self._jobs.append(Job(caller, work))
            self._changed.notify()

    def waiting_for(self, caller: Caller) -> list[str]:
        """Names of the models that a caller waits for now, sorted."""
        with self._lock:
            return sorted({request.queue.name for request in caller.live})

    def abandon(self, caller: Caller) -> None:
        """Drop what is left of a caller's requests; what nobody waits for any more is told to end."""
        with self._lock:
            caller.gone = True
            while caller.live:
                self._drop(caller.live.pop())

    def statistics(self) -> dict[str, ModelStatistics]:
        """Snapshots by model."""
        with self._lock:
            for counted in self._statistics.values():
                counted.queued = 0
            for queue in self._queues.values():
                queue.statistics.queued += len(queue.waiting)
            return {queue.name: queue.statistics.copy() for queue in self._queues.values()}

    def stop(self, drain: float) -> None:
        """Work off what waits for at most ``drain`` seconds, then refuse and end the rest. Blocks."""
        with self._lock:
            self._stopping = True
            self._changed.notify_all()
        end = time.monotonic() + drain
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        ended: Ended = []
        with self._lock:
            for queue in self._queues.values():
                ended += self._end_all(queue, EngineUnavailable("the engine is closed"))
            for running in self._running:
                if isinstance(running, Batch):
                    running.options.terminate = True
            jobs, self._jobs = self._jobs, deque()
        for job in jobs:
            job.caller.finish(EngineUnavailable("the engine is closed"))
        _hand_over(ended)

    def _end_all(self, queue: Queue, error: ServiceError) -> Ended:
        """Fail what waits in a queue."""
        leftover, queue.waiting = list(queue.waiting), deque()
        return [ended for part in leftover for ended in self._settle(part, error)]

    def _settle(self, part: Part, outcome: Outputs | ServiceError) -> Ended:
        """Note one part's outcome; its request and the whole outcome when that has ended with it."""
        request, part.batch = part.request, None
        if request not in request.caller.live:  # failed by another part, or given up
            return []
        request.remaining -= 1
        if isinstance(outcome, ServiceError):
            request.caller.live.discard(request)
            if request.remaining:
                self._drop(request)
            request.parts = []
            return [(request, outcome)]
        request.results[part.index] = outcome
        if request.remaining:
            return []
        request.caller.live.discard(request)
        request.parts = []  # they know their request: megabytes would wait for the collector of cycles
        return [(request, request.results)]

    def _drop(self, request: Request) -> None:
        queue = request.queue
        queue.statistics.abandoned += 1
        queue.waiting = deque(part for part in queue.waiting if part.request is not request)
        for part in request.parts:
            if part.batch is not None:
                part.batch.abandon()
        request.parts = []

    def _work(self) -> None:
        name_thread("inference")
        # One call for each batch: an idle worker must not keep the last pictures alive in its variables.
        while self._run_next():
            pass

    def _run_next(self) -> bool:
        """Wait for a batch, run it, hand the answers out; False when the scheduler has stopped."""
        batch, late = self._next()
        _hand_over(late)
        if batch is None:
            return bool(late)
        if isinstance(batch, Job):
            batch.run()
            with self._lock:
                self._running.discard(batch)
            return True
        self._run(batch)
        return True

    def _run(self, batch: Batch) -> None:
        """Run a batch that has begun, and hand the answers out."""
        started = time.monotonic()
        outcomes = batch.outcomes()
        _hand_over(self._record(batch, outcomes, started, time.monotonic() - started))

    def _begin(self, work: Batch | Job, waiting: bool) -> None:
        """Count what this thread is about to run; ``waiting``: whether something else does."""
        if isinstance(work, Batch):
            work.alone = not waiting and not self._running
            work.queue.statistics.running += 1
        self._running.add(work)

    def _next(self) -> tuple[Batch | Job | None, Ended]:
        """Wait for a batch that is due or a job, or for requests that have waited too long.

        Neither when the scheduler stops and nothing waits.
        """
        with self._lock:
            while True:
                now = time.monotonic()
                # A look at every model's queue for each run would be a look at memory that the last run has pushed out.
                for queue in [one for one in self._lined if not one.waiting]:
                    del self._lined[queue]
                late = self._late(now)
                oldest, wait = self._choose(now)
                found: Batch | Job | None = None
                if self._jobs and (oldest is None or self._jobs[0].since < oldest.oldest):
                    found = self._jobs.popleft()
                elif oldest is not None:
                    found = oldest.take()
                if found is not None:
                    waiting = self._waiting()
                    self._begin(found, waiting)
                    if waiting:
                        self._changed.notify()  # this worker may have been the one that waited for those
                    return found, late
                if late:
                    return None, late
                if self._stopping and not self._waiting():
                    self._changed.notify_all()
                    return None, []
                self._changed.wait(wait)

    def _waiting(self) -> bool:
        return bool(self._jobs) or any(queue.waiting for queue in self._lined)

    def _late(self, now: float) -> Ended:
        """Take out and fail what has waited for longer than its model's queue allows."""
        ended: Ended = []
        for queue in self._lined:
            limit = queue.policy.queue_timeout
            while limit and queue.waiting and now - queue.waiting[0].arrived > limit:
                error = DeadlineExceeded(f"model {queue.name!r}: waited too long in the queue")
                ended += self._settle(queue.waiting.popleft(), error)
        return ended

    def _choose(self, now: float) -> tuple[Queue | None, float | None]:
        """The queue whose head is due and oldest; else how long until one is due (None: until something changes)."""
        oldest: Queue | None = None
        wait: float | None = None
        for queue in self._lined:
            if not queue.waiting or not queue.has_room():
                continue
            due = queue.due() if self._running and not self._stopping else now
            if due > now:
                wait = due - now if wait is None else min(wait, due - now)
            elif oldest is None or queue.oldest < oldest.oldest:
                oldest = queue
        return oldest, wait

    def _record(
        self, batch: Batch, outcomes: Sequence[Outputs | ServiceError], started: float, seconds: float
    ) -> Ended:
        """Count a run, and settle its parts; the requests that have ended with it."""
        statistics, rows = batch.queue.statistics, batch.rows
        ended: Ended = []
        with self._lock:
            self._running.discard(batch)
            statistics.running -= 1
            statistics.runs += 1
            statistics.failed_runs += isinstance(outcomes[0], InferenceFailed)
            statistics.compute_seconds += seconds
            statistics.rows += rows
            statistics.batch_sizes[rows] += 1
            statistics.parts += len(outcomes)
            for part, outcome in zip(batch.parts, outcomes, strict=True):
                statistics.queue_seconds += started - part.arrived
                ended += self._settle(part, outcome)
        return ended


def _hand_over(ended: Ended) -> None:
    """Tell those who wait; without the scheduler's lock, for they may submit."""
    for request, outcome in ended:
        try:
            request.done(outcome)
        except Exception as error:  # a worker outlives whatever its callers make of an answer
            logger.exception("what follows model %s failed", request.queue.name)
            request.caller.finish(InferenceFailed(f"model {request.queue.name!r}: {error}"))
