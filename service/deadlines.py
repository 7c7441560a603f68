"""How long a caller waits: ``X-Request-Timeout`` says it, and work is given up when the time is over."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from typing import Any, TypeVar

from service.errors import ClientGone, DeadlineExceeded, InvalidOption
from service.settings import Settings

Result = TypeVar("Result")

HEADER = "X-Request-Timeout"
# Decimal seconds and nothing else: a unit, an exponent or a sign is more often a mistake than meant.
_SECONDS = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")


def read_timeout(header: str | None, settings: Settings) -> float:
    """Seconds from the arrival of a request's head to its answer.

    Args:
        header: ``X-Request-Timeout``; None for the default.
        settings: ``deadline_seconds`` is the default, ``max_deadline_seconds`` the longest.

    Raises:
        InvalidOption: not decimal seconds above zero, or longer than the longest.
    """
    if header is None:
        return settings.deadline_seconds
    longest = max(settings.max_deadline_seconds, settings.deadline_seconds)
    text = header.strip()
    seconds = float(text) if _SECONDS.fullmatch(text) else 0.0
    if not 0 < seconds <= longest:
        raise InvalidOption(
            f"{HEADER}: {text[:50]!r}: seconds such as 2.5 are expected, more than 0, at most {longest:g}"
        )
    return seconds


async def finish_within(
    work: Coroutine[Any, Any, Result], seconds: float, gone: Coroutine[Any, Any, None], asked: float | None = None
) -> Result:
    """The result of ``work``, unless its time is up or the caller has gone: then it is cancelled.

    Args:
        work: makes the answer.
        seconds: how long it may take; not above zero when the time is up already.
        gone: ends when nobody waits for the answer any more.
        asked: seconds that the caller gave in all, for the message.

    Raises:
        DeadlineExceeded: the time is up.
        ClientGone: the caller hung up.
    """
    loop = asyncio.get_running_loop()
    task, hang_up, over = loop.create_task(work), loop.create_task(gone), loop.create_future()

    def end(_: object = None) -> None:
        if not over.done():
            over.set_result(None)

    # What asyncio.wait does for any number of tasks, for these two.
    task.add_done_callback(end)
    hang_up.add_done_callback(end)
    timer = loop.call_later(max(0.0, seconds), end)
    try:
        await over
        if task.done():
            return task.result()
        if hang_up.done():
            raise ClientGone("the caller hung up before the answer")
        raise DeadlineExceeded(f"no answer within {seconds if asked is None else asked:g} s")
    finally:
        # Also when it is us who are cancelled, be it at the moment at which the work ended.
        timer.cancel()
        hang_up.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, hang_up, return_exceptions=True)
        elif not task.cancelled():
            task.exception()  # seen: asyncio would log it as never retrieved
