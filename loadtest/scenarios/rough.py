"""Callers as they are: of ten, three send nonsense, one trickles his picture, one hangs up, and five behave.

    locust -f loadtest/scenarios/rough.py --host URL --headless --users 10 --run-time 60s --mixed

Pictures whose sender behaves or is only slow must get their right answer. Nonsense must get the status that its kind
deserves. Whoever hangs up gets nothing, and must not harm the others.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import time
from urllib.parse import urlsplit

from locust import constant, task

from loadtest import locustfile
from loadtest.malformed import malformed

_PIECES = 20
_TIMEOUT_SECONDS = 60.0


class WellBehaved(locustfile.PoseUser):
    """Half of the callers."""

    weight = 5


class Careless(locustfile.PoseUser):
    """Sends what is wrong."""

    weight = 3
    chance = random.Random(1)

    @task
    def post_picture(self) -> None:
        """One wrong request; the status has to be the one for its kind."""
        wrong = malformed(self.chance, self.next_case().picture, headers=self.key())
        begun = time.perf_counter()
        status, _ = _exchange(self.host or "", [wrong.request], 0.0)
        reason = None if status in wrong.statuses else f"HTTP {status} instead of {sorted(wrong.statuses)}"
        _tell(self, f"wrong: {wrong.name}", begun, reason)


class Slow(locustfile.PoseUser):
    """Sends a picture in twenty pieces over two seconds."""

    weight = 1

    @task
    def post_picture(self) -> None:
        """One picture; the answer is checked as any other."""
        case = self.next_case()
        request = case.request(self.key())
        length = -(-len(request) // _PIECES)
        begun = time.perf_counter()
        status, body = _exchange(
            self.host or "", [request[k : k + length] for k in range(0, len(request), length)], 0.1
        )
        reason = self.checked.wrong(case, body) if status == 200 else f"HTTP {status}: {body[:200]!r}"
        _tell(self, "slow caller", begun, reason)


class Vanishing(locustfile.PoseUser):
    """Hangs up: in the middle of the picture, or before the answer."""

    weight = 1
    wait_time = constant(0.2)
    chance = random.Random(2)

    @task
    def post_picture(self) -> None:
        """One connection that is gone before its answer."""
        request = self.next_case().request(self.key())
        begun = time.perf_counter()
        reason = None
        try:
            with _connected(self.host or "") as connection:
                connection.sendall(request[: int(len(request) * self.chance.choice((0.3, 0.9, 1.0, 1.0)))])
                time.sleep(self.chance.uniform(0, 0.1))
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before it was all sent: gone as well
        except OSError as error:
            reason = repr(error)
        _tell(self, "vanishing caller", begun, reason)


def _connected(host: str) -> contextlib.closing[socket.socket]:
    """A plain connection (cooperative under Locust, which replaces the sockets of the process)."""
    parts = urlsplit(host)
    return contextlib.closing(socket.create_connection((parts.hostname, parts.port or 80), timeout=_TIMEOUT_SECONDS))


def _exchange(host: str, pieces: list[bytes], pause: float) -> tuple[int, bytes]:
    """Send pieces with pauses between, and read the answer; status 0 with the reason when the connection failed."""
    try:
        with _connected(host) as connection:
            # A refusal may come, and the connection be closed, before all is sent: the answer is there to be read.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for number, piece in enumerate(pieces):
                    if number:
                        time.sleep(pause)
                    connection.sendall(piece)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        return 0, repr(error).encode()


def _tell(user: locustfile.PoseUser, name: str, begun: float, reason: str | None) -> None:
    user.environment.events.request.fire(
        request_type="POST",
        name=name,
        response_time=(time.perf_counter() - begun) * 1000,
        response_length=0,
        exception=None if reason is None else RuntimeError(reason),
        context={"begun": begun},
    )
