"""Clients that each keep one connection and one request in flight, and check every answer."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

import uvloop

from loadtest.agreement import disagreement
from loadtest.pace import Round, rate
from loadtest.pictures import LoadPicture
from loadtest.wire import ConnectionLost, OutOfPatience, Wire, request_bytes

_TIMEOUT_SECONDS = 60.0


@dataclass
class Outcome:
    """What a round of load gave.

    Attributes:
        rate: pictures a second.
        posted: pictures answered in all, lead-in and all.
        latencies: seconds of each request that ended after the lead-in.
        failures: what was wrong with answers, in words.
    """

    rate: float = 0.0
    posted: int = 0
    latencies: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


class ClosedLoop:
    """Posts pictures in turn from several clients and checks every answer."""

    def __init__(
        self,
        url: str,
        pictures: Sequence[LoadPicture],
        expected: Sequence[Any],
        *,
        options: Mapping[str, str] | None = None,
        api_key: str | None = None,
    ) -> None:
        """``expected``: the answer to each picture, parsed, as the service gave it alone."""
        path = f"{urlsplit(url).path.rstrip('/')}/v1/pose" + (f"?{urlencode(options)}" if options else "")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._url = url
        self._requests = [request_bytes(path, p.data, p.media_type, headers=headers) for p in pictures]
        self._pictures, self._expected = pictures, expected
        self._known: dict[tuple[int, bytes], str | None] = {}

    def run(self, clients: int, seconds: float, *, lead_in: float = 0.5) -> Outcome:
        """Load for ``lead_in + seconds``; what ends in the lead-in is checked but not counted."""
        outcome = Outcome()
        answers: list[tuple[int, int, bytes]] = []
        uvloop.run(self._clients(clients, Round(seconds, clients, lead_in), outcome, answers))
        # Checked afterwards: parsing would take time from the service.
        for index, status, body in answers:
            if reason := self._check(index, status, body):
                outcome.failures.append(f"{self._pictures[index].name}: {reason}")
        return outcome

    async def _clients(
        self, clients: int, clock: Round, outcome: Outcome, answers: list[tuple[int, int, bytes]]
    ) -> None:
        async with Wire(self._url) as wire:
            firsts = [number * len(self._pictures) // clients for number in range(clients)]  # begin at different ones
            await asyncio.gather(*(self._client(wire, first, clock, outcome, answers) for first in firsts))
        outcome.rate, outcome.posted = rate(clock.moments, clients), len(answers)

    async def _client(
        self, wire: Wire, turn: int, clock: Round, outcome: Outcome, answers: list[tuple[int, int, bytes]]
    ) -> None:
        while clock.goes_on():
            index = turn % len(self._requests)
            turn += 1
            sent = time.perf_counter()
            try:
                reply = await wire.ask(self._requests[index], patience=_TIMEOUT_SECONDS)
            except (ConnectionLost, OutOfPatience) as error:
                outcome.failures.append(f"{self._pictures[index].name}: {error!r}")
                await asyncio.sleep(0.1)
                continue
            answers.append((index, reply.status, reply.body))
            if clock.completed():
                outcome.latencies.append(time.perf_counter() - sent)

    def _check(self, index: int, status: int, body: bytes) -> str | None:
        if status != 200:
            return f"HTTP {status}: {body[:200].decode('utf-8', 'replace')}"
        key = (index, body)
        if key not in self._known:
            self._known[key] = disagreement(self._expected[index], json.loads(body))
        return self._known[key]
