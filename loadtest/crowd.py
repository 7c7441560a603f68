"""Callers of every kind at a time, on asyncio: well-behaved, careless, slow, impatient and gone.

Each caller keeps one request in flight and draws by chance, from a seed, what the next one is. What comes back is
judged by its kind: a right request gets its known answer, a wrong one the status that it deserves, and somebody who
left gets nothing. An answer that never comes is a hung request.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from loadtest.cases import Case, Checked
from loadtest.malformed import malformed
from loadtest.wire import ConnectionLost, OutOfPatience, Reply, Wire

# Longer than any deadline of the service: whoever has no answer by now never gets one.
HUNG_SECONDS = 180.0
# Answers of a sound service to a right request when it is busy, or the caller's time is up.
_BUSY = frozenset({429, 504})

Ask = Callable[[], Coroutine[Any, Any, Reply]]


@dataclass(frozen=True)
class Manners:
    """What part of the requests is of which kind; what is left is well-behaved.

    Attributes:
        wrong: malformed in one of the ways of :mod:`loadtest.malformed`.
        slow: the body comes in pieces over one or two seconds.
        gone: the caller hangs up in the middle of the body or before the answer.
        impatient: the caller waits for a time drawn by chance, up to ``patience`` seconds, then hangs up.
    """

    wrong: float = 0.3
    slow: float = 0.02
    gone: float = 0.05
    impatient: float = 0.2
    patience: float = 1.0


@dataclass
class Tally:
    """What became of the requests."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    begun: int = 0

    @property
    def ended(self) -> int:
        """Requests whose fate is known."""
        return sum(self.outcomes.values())

    @property
    def hanging(self) -> int:
        """Requests that hung, and those whose fate nobody knows: their callers never came back to tell."""
        return self.begun - self.ended + len(self.hung)

    def count(self, outcome: str) -> int:
        """Requests with that outcome, of all kinds."""
        return sum(number for (_, what), number in self.outcomes.items() if what == outcome)

    def statuses(self) -> dict[str, int]:
        """Requests by outcome."""
        outcomes: Counter[str] = Counter()
        for (_, what), number in self.outcomes.items():
            outcomes[what] += number
        return dict(sorted(outcomes.items()))


class Crowd:
    """Callers of one service.

    Attributes:
        tally: what became of their requests so far.
        unavailable: whether 503 and lost connections are to be expected now (something was killed).
    """

    def __init__(
        self, wire: Wire, cases: Sequence[Case], manners: Manners, headers: dict[str, str] | None = None, seed: int = 0
    ) -> None:
        self._wire, self._cases, self._manners, self._headers = wire, cases, manners, headers
        self._chance = random.Random(seed)
        self._checked = Checked()
        self._requests: dict[int, bytes] = {}
        self.tally = Tally()
        self.unavailable = False

    async def run(self, callers: int, goes_on: Callable[[], bool]) -> None:
        """Let that many callers ask until ``goes_on`` says no, and wait for what is in flight."""
        await asyncio.gather(*(self._caller(goes_on) for _ in range(callers)))

    async def _caller(self, goes_on: Callable[[], bool]) -> None:
        while goes_on():
            await self.once()

    async def once(self) -> None:
        """One request of a kind drawn by chance."""
        manners, chance, drawn = self._manners, self._chance, self._chance.random()
        case = chance.choice(self._cases)
        self.tally.begun += 1
        if drawn < manners.wrong:
            await self._careless(case)
        elif drawn < manners.wrong + manners.slow:
            await self._right(
                "slow", case, lambda: self._wire.trickle(self._request(case), 20, chance.uniform(0.05, 0.1))
            )
        elif drawn < manners.wrong + manners.slow + manners.gone:
            await self._gone(case)
        elif drawn < manners.wrong + manners.slow + manners.gone + manners.impatient:
            patience = chance.uniform(0.0, manners.patience)
            await self._right("impatient", case, lambda: self._wire.ask(self._request(case), patience=patience))
        else:
            await self._right("well-behaved", case, lambda: self._wire.ask(self._request(case), patience=HUNG_SECONDS))

    def _request(self, case: Case) -> bytes:
        if id(case) not in self._requests:
            self._requests[id(case)] = case.request(self._headers)
        return self._requests[id(case)]

    async def _right(self, kind: str, case: Case, ask: Ask) -> None:
        name = f"{kind}: {case.picture.name} {case.name}"
        reply = await self._reply(kind, name, ask)
        if reply is None:
            return
        if reply.status == 200:
            reason = self._checked.wrong(case, reply.body)
            if reason:
                self.tally.wrong.append(f"{name}: {reason}")
            elif kind == "well-behaved":
                self.tally.latencies.append(reply.seconds)
            self._note(kind, "wrong answer" if reason else "right")
        else:
            self._judge(kind, name, reply, _BUSY)

    async def _careless(self, case: Case) -> None:
        wrong = malformed(self._chance, case.picture, headers=self._headers)
        name = f"malformed: {wrong.name}"
        reply = await self._reply("malformed", name, lambda: self._wire.ask(wrong.request, patience=HUNG_SECONDS))
        if reply is not None:
            self._judge("malformed", name, reply, wrong.statuses | _BUSY)

    async def _gone(self, case: Case) -> None:
        share = self._chance.choice((0.3, 0.9, 1.0, 1.0))
        try:
            await self._wire.abandon(self._request(case), share, self._chance.uniform(0, 0.2))
        except ConnectionLost:
            self._lost("gone")
            return
        self._note("gone", "left")

    async def _reply(self, kind: str, name: str, ask: Ask) -> Reply | None:
        try:
            return await ask()
        except OutOfPatience:
            if kind == "impatient":
                self._note(kind, "left")
            else:
                self.tally.hung.append(f"{name}: no answer within {HUNG_SECONDS:g} s")
                self._note(kind, "hung")
        except ConnectionLost as error:
            self._lost(kind, f"{name}: {error}")
        return None

    def _judge(self, kind: str, name: str, reply: Reply, allowed: frozenset[int]) -> None:
        if reply.status in allowed or (reply.status == 503 and self.unavailable):
            self._note(kind, str(reply.status))
        else:
            self._note(kind, f"unexpected {reply.status}")
            self.tally.wrong.append(f"{name}: HTTP {reply.status} {reply.body[:200]!r}")

    def _lost(self, kind: str, reason: str = "") -> None:
        self.tally.lost.append(time.monotonic())
        self._note(kind, "connection lost" if self.unavailable else "connection lost for nothing")
        if not self.unavailable:
            self.tally.wrong.append(reason or f"{kind}: the connection was lost")

    def _note(self, kind: str, outcome: str) -> None:
        self.tally.outcomes[kind, outcome] += 1
