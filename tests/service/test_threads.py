"""Threads for pixels: an answer that gets lost here is a request that hangs, work that is not dropped is overload."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from pathlib import Path

import pytest

from service.threads import Threads


class Gate:
    """Work that has begun and waits until ``open`` is set."""

    def __init__(self) -> None:
        self.begun, self.open = threading.Event(), threading.Event()

    def __call__(self) -> bool:
        self.begun.set()
        return self.open.wait(30)

    async def entered(self) -> None:
        while not self.begun.is_set():
            await asyncio.sleep(0.001)


async def test_results_and_errors_come_back_to_their_callers() -> None:
    threads = Threads(3, "pixels")
    results = await asyncio.gather(*(threads.run(divmod, 20, divisor) for divisor in range(4)), return_exceptions=True)
    assert isinstance(results[0], ZeroDivisionError)
    assert results[1:] == [(20, 0), (10, 0), (6, 2)]
    threads.close()


@pytest.mark.parametrize("count", [1, 3])
async def test_no_more_run_at_a_time_than_were_asked_for(count: int) -> None:
    threads, running, most, lock = Threads(count, "pixels"), 0, 0, threading.Lock()

    def work() -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return threading.current_thread().name

    names = await asyncio.gather(*(threads.run(work) for _ in range(9)))
    assert most == len(set(names)) == count
    threads.close()


async def test_work_that_nobody_waits_for_is_not_begun() -> None:
    threads, done, gate = Threads(1, "pixels"), [], Gate()
    first = asyncio.ensure_future(threads.run(gate))
    dropped = asyncio.ensure_future(threads.run(done.append, "dropped"))
    kept = asyncio.ensure_future(threads.run(done.append, "kept"))
    await gate.entered()
    dropped.cancel()
    await asyncio.sleep(0)
    gate.open.set()
    await asyncio.gather(first, kept)
    assert done == ["kept"]
    threads.close()


async def test_a_thread_whose_caller_has_gone_does_not_hold_up_others() -> None:
    threads, gate = Threads(2, "pixels"), Gate()
    gone = asyncio.ensure_future(threads.run(gate))
    await gate.entered()
    gone.cancel()
    assert await asyncio.wait_for(threads.run(int), 20) == 0
    gate.open.set()
    threads.close()


async def test_closing_ends_the_threads_and_refuses_more() -> None:
    threads, gate = Threads(1, "closing"), Gate()
    running = asyncio.ensure_future(threads.run(gate))
    waiting = asyncio.ensure_future(threads.run(int))
    await gate.entered()
    threads.close()
    gate.open.set()
    assert await running, "what has begun ends well"
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with pytest.raises(RuntimeError, match="closed"):
        await threads.run(int)
    for _ in range(200):
        if not any(thread.name.startswith("closing") for thread in threading.enumerate()):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the thread is still there")


async def test_a_result_is_not_kept_alive_by_an_idle_thread() -> None:
    """A thread that remembers its last picture holds megabytes for as long as nobody asks."""
    import weakref

    class Picture:
        pass

    threads = Threads(1, "pixels")
    picture = Picture()
    seen = weakref.ref(picture)
    assert await threads.run(lambda given: given, picture) is picture
    del picture
    for _ in range(400):
        if seen() is None:
            break
        await asyncio.sleep(0.01)
    assert seen() is None
    threads.close()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_operators_see_which_threads_they_are() -> None:
    threads = Threads(1, "pixels")
    name = await threads.run(lambda: Path("/proc/thread-self/comm").read_text())
    assert name.strip() == "pixels"
    threads.close()
