"""An open loop on asyncio: requests begin at the moments of a Poisson process, whatever became of earlier ones."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field


@dataclass
class Arrivals:
    """What the generator did.

    Attributes:
        began: moment of ``time.perf_counter`` at which the first could have been due.
        ended: moment after which none was due.
        lateness: seconds by which each request began later than it was due: what the generator itself adds.
    """

    began: float = 0.0
    ended: float = 0.0
    lateness: list[float] = field(default_factory=list)


async def arrive(rate: float, seconds: float, one: Callable[[int], Awaitable[None]], *, seed: int = 0) -> Arrivals:
    """Begin ``one(number)`` at ``rate`` a second for that long, then wait until all have ended.

    A generator that was held up begins at once all that has become due: the rate is kept, the lateness noted.
    """
    chance = random.Random(seed)
    arrivals = Arrivals(began=time.perf_counter())
    arrivals.ended = arrivals.began + seconds
    running: set[asyncio.Future[None]] = set()
    due, number = arrivals.began, 0
    while (due := due + chance.expovariate(rate)) < arrivals.ended:
        wait = due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        elif number % 50 == 0:
            await asyncio.sleep(0)  # a long backlog must not keep answers from being read
        arrivals.lateness.append(max(0.0, time.perf_counter() - due))
        task = asyncio.ensure_future(one(number))
        running.add(task)
        task.add_done_callback(running.discard)
        number += 1
    if running:
        await asyncio.gather(*running)
    return arrivals
