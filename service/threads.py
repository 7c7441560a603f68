"""Threads for work on pixels: OpenCV lets go of the interpreter lock, so they run beside the event loop.

``concurrent.futures`` does the same with two futures, three locks and a dozen calls for each piece of work; here it is
one queue and one future, a third of the time on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_Job = tuple["asyncio.Future[Any]", asyncio.AbstractEventLoop, Callable[[], Any]]
_SET_NAME = 15  # PR_SET_NAME of Linux


class Threads:
    """At most ``count`` threads, started when there is work for them. All methods are the event loop's."""

    def __init__(self, count: int, name: str) -> None:
        """``name`` is what the system shows for each of them."""
        self._count = count
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._started = 0
        self._unfinished = 0
        self._closed = False

    async def run(self, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        """The result of the work, in one of the threads. Work whose caller is cancelled before it begins is dropped.

        Raises what the work raises; RuntimeError after :meth:`close`.
        """
        if self._closed:
            raise RuntimeError(f"the {self._name} threads are closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._unfinished += 1
        if self._unfinished > self._started and self._started < self._count:
            self._started += 1
            # A daemon: a program that forgets close() can still end.
            threading.Thread(target=self._work, name=f"{self._name}-{self._started}", daemon=True).start()
        self._jobs.put((future, loop, functools.partial(work, *args, **kwargs)))
        return await future

    def close(self) -> None:
        """Let the threads end after what has been begun; the rest is cancelled."""
        self._closed = True
        while not self._jobs.empty():
            if (job := self._jobs.get()) is not None:
                job[0].cancel()
        for _ in range(self._started):
            self._jobs.put(None)

    def _work(self) -> None:
        name_thread(self._name)
        # One call for each job: an idle thread must not keep the last picture alive in its variables.
        while self._run_next():
            pass

    def _run_next(self) -> bool:
        job = self._jobs.get()
        if job is None:
            return False
        future, loop, work = job
        result, error = None, None
        if not future.cancelled():
            try:
                result = work()
            except BaseException as raised:
                error = raised
        with contextlib.suppress(RuntimeError):  # the event loop was closed meanwhile: nobody waits
            loop.call_soon_threadsafe(self._deliver, future, result, error)
        return True

    def _deliver(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        self._unfinished -= 1
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


def name_thread(name: str) -> None:
    """Show the calling thread under that name (15 characters) in ``top -H`` and /proc; Linux only."""
    if sys.platform == "linux":
        with_name = ctypes.create_string_buffer(name.encode()[:15])
        ctypes.CDLL(None).prctl(_SET_NAME, with_name, 0, 0, 0)
