"""Threads for pixels: an answer that gets lost here is a request that hangs, work that is not dropped is overload."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from pathlib import Path

import pytest

from service.threads import Threads


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
    threads, done, gate = Threads(1, "pixels"), [], threading.Event()
    first = asyncio.ensure_future(threads.run(gate.wait, 10))
    dropped = asyncio.ensure_future(threads.run(done.append, "dropped"))
    kept = asyncio.ensure_future(threads.run(done.append, "kept"))
    await asyncio.sleep(0.01)
    dropped.cancel()
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(first, kept)
    assert done == ["kept"]
    threads.close()


async def test_closing_ends_the_threads_and_refuses_more() -> None:
    threads, gate = Threads(1, "closing"), threading.Event()
    running = asyncio.ensure_future(threads.run(gate.wait, 10))
    waiting = asyncio.ensure_future(threads.run(int))
    await asyncio.sleep(0.01)
    threads.close()
    gate.set()
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
    await asyncio.sleep(0.05)
    assert seen() is None
    threads.close()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_operators_see_which_threads_they_are() -> None:
    threads = Threads(1, "pixels")
    name = await threads.run(lambda: Path("/proc/thread-self/comm").read_text())
    assert name.strip() == "pixels"
    threads.close()
