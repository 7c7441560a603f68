"""Clients that each keep one connection and one request in flight: threads with the standard library's HTTP.

They cost a third of a millisecond of CPU for a request, so that two cores go to the service and not to asking it.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

from loadtest.agreement import disagreement
from loadtest.pace import Round, rate
from loadtest.pictures import LoadPicture

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
        parts = urlsplit(url)
        self._https = parts.scheme == "https"
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port
        self._path = f"{parts.path.rstrip('/')}/v1/pose" + (f"?{urlencode(options)}" if options else "")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._pictures, self._expected = pictures, expected
        self._known: dict[tuple[int, bytes], str | None] = {}

    def run(self, clients: int, seconds: float, *, lead_in: float = 0.5) -> Outcome:
        """Load for ``lead_in + seconds``; what ends in the lead-in is checked but not counted."""
        clock, outcome = Round(seconds, clients, lead_in), Outcome()
        answers: list[tuple[int, int, bytes]] = []
        threads = [
            threading.Thread(target=self._client, args=(number, clients, clock, outcome, answers))
            for number in range(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        outcome.rate, outcome.posted = rate(clock.moments, clients), len(answers)
        # Checked afterwards: parsing would take time from the service.
        for index, status, body in answers:
            if reason := self._check(index, status, body):
                outcome.failures.append(f"{self._pictures[index].name}: {reason}")
        return outcome

    def _client(
        self, number: int, clients: int, clock: Round, outcome: Outcome, answers: list[tuple[int, int, bytes]]
    ) -> None:
        turn = number * len(self._pictures) // clients  # clients begin at different pictures
        connection = self._connect()
        try:
            while clock.goes_on():
                index = turn % len(self._pictures)
                turn += 1
                picture = self._pictures[index]
                sent = time.perf_counter()
                try:
                    connection.request(
                        "POST", self._path, picture.data, {"Content-Type": picture.media_type, **self._headers}
                    )
                    response = connection.getresponse()
                    answers.append((index, response.status, response.read()))
                except (OSError, http.client.HTTPException) as error:
                    outcome.failures.append(f"{picture.name}: {error!r}")
                    connection.close()
                    time.sleep(0.1)
                    continue
                received = time.perf_counter()
                if clock.completed():
                    outcome.latencies.append(received - sent)
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._https else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=_TIMEOUT_SECONDS)

    def _check(self, index: int, status: int, body: bytes) -> str | None:
        if status != 200:
            return f"HTTP {status}: {body[:200].decode('utf-8', 'replace')}"
        key = (index, body)
        if key not in self._known:
            self._known[key] = disagreement(self._expected[index], json.loads(body))
        return self._known[key]
