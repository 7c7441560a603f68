"""``python -m loadtest.overload``: ten times more than the service can do, and what becomes of it.

First the peak is found: a closed loop with more and more clients. Then rounds take turns: the closed loop at that many
clients, and an open loop in which requests arrive by chance at ``--times`` the peak's rate. What is refused must be
refused quickly, what is accepted must be right and in time, and as much must get done as without the crowd. The
generator shares the machine with the service; the table tells what it took.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import uvloop
from rich.console import Console

from loadtest.arrivals import Arrivals, arrive
from loadtest.cases import Case, Checked, learn
from loadtest.pictures import rendered_pictures
from loadtest.server import cpu_seconds, running_service
from loadtest.verdict import Verdict, percentile_ms, shown_ms
from loadtest.wire import ConnectionLost, OutOfPatience, Wire
from service.client import PoseClient

_LEAD_IN = 1.0
_PATIENCE = 120.0


@dataclass
class Answers:
    """What came back. Times are seconds; ``moments`` are of ``time.perf_counter``."""

    statuses: Counter[int] = field(default_factory=Counter)
    accepted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    retry_after: list[float] = field(default_factory=list)

    def goodput(self, began: float, ended: float) -> float:
        """Right answers a second between two moments."""
        return sum(began <= moment <= ended for moment in self.moments) / (ended - began)


@dataclass
class Round:
    """One round of each kind."""

    peak: float
    goodput: float
    offered: float
    answers: Answers
    arrivals: Arrivals
    client_cpu: float
    server_cpu: float | None


class Load:
    """Asks for the cases in turn and notes what comes."""

    def __init__(self, wire: Wire, cases: Sequence[Case], requests: Sequence[bytes]) -> None:
        """``requests``: the cases on the wire."""
        self._wire, self._cases, self._requests = wire, cases, requests
        self._checked = Checked()

    async def one(self, number: int, answers: Answers) -> None:
        """Ask once."""
        index = number % len(self._cases)
        try:
            reply = await self._wire.ask(self._requests[index], patience=_PATIENCE)
        except (ConnectionLost, OutOfPatience) as error:
            answers.statuses[0] += 1
            answers.wrong.append(f"{self._cases[index].picture.name}: {error!r}")
            return
        answers.statuses[reply.status] += 1
        if reply.status == 200:
            reason = self._checked.wrong(self._cases[index], reply.body)
            if reason:
                answers.wrong.append(f"{self._cases[index].picture.name}: {reason}")
            else:
                answers.accepted.append(reply.seconds)
                answers.moments.append(time.perf_counter())
        elif reply.status == 429:
            answers.refused.append(reply.seconds)
            answers.retry_after.append(float(reply.headers.get("retry-after", "nan")))
        elif reply.status < 500:  # 5xx have a line of their own
            answers.wrong.append(f"{self._cases[index].picture.name}: HTTP {reply.status} {reply.body[:200]!r}")

    async def closed(self, clients: int, seconds: float) -> tuple[float, Answers]:
        """Clients with one request in flight each; right answers a second after the lead-in."""
        answers, began = Answers(), time.perf_counter()
        ended = began + _LEAD_IN + seconds

        async def client(place: int) -> None:
            number = place
            while time.perf_counter() < ended:
                await self.one(number, answers)
                number += clients

        await asyncio.gather(*(client(place) for place in range(clients)))
        return answers.goodput(began + _LEAD_IN, ended), answers

    async def open(self, rate: float, seconds: float, seed: int) -> tuple[float, Answers, Arrivals]:
        """Arrivals at a rate; right answers a second after the lead-in, while more keep coming."""
        answers = Answers()
        arrivals = await arrive(rate, _LEAD_IN + seconds, lambda number: self.one(number, answers), seed=seed)
        return answers.goodput(arrivals.began + _LEAD_IN, arrivals.ended), answers, arrivals


async def measure(
    url: str, cases: Sequence[Case], options: Options, pid: int | None, say: Console
) -> tuple[int, list[Round]]:
    """Find the peak, then take turns; the clients at the peak, and the rounds."""
    async with Wire(url) as wire:
        load = Load(wire, cases, [case.request(options.headers) for case in cases])
        best, clients = 0.0, 1
        for tried in options.clients:
            rate, answers = await load.closed(tried, options.seconds / 2)
            say.print(f"{tried} clients: {rate:.2f} right answers/s, {len(answers.wrong)} wrong")
            if rate > best:
                best, clients = rate, tried
        if best == 0:
            raise RuntimeError(f"nothing was answered: {dict(answers.statuses)} {answers.wrong[:3]}")
        rounds = []
        for number in range(options.rounds):
            peak, _ = await load.closed(clients, options.seconds)
            own, served = time.process_time(), cpu_seconds(pid) if pid else None
            offered = options.times * max(peak, 0.1)
            goodput, answers, arrivals = await load.open(offered, options.seconds, number)
            count = max(1, len(arrivals.lateness))
            after = cpu_seconds(pid) if pid else None
            server = None if served is None or after is None else (after - served) / count
            rounds.append(Round(peak, goodput, offered, answers, arrivals, (time.process_time() - own) / count, server))
            say.print(
                f"round {number + 1}: peak {peak:.2f}/s, offered {offered:.0f}/s, goodput {goodput:.2f}/s, "
                f"{dict(answers.statuses)}"
            )
    return clients, rounds


@dataclass(frozen=True)
class Options:
    """How to measure."""

    clients: Sequence[int]
    seconds: float
    rounds: int
    times: float
    headers: dict[str, str]


def main(
    url: Annotated[str | None, typer.Option(help="Service that runs already; by default one is started.")] = None,
    times: Annotated[float, typer.Option(min=1, help="How many times the peak is offered.")] = 10.0,
    seconds: Annotated[float, typer.Option(min=0.5, help="Length of a round.")] = 20.0,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of peak and overload, in turn.")] = 3,
    clients: Annotated[str, typer.Option(help="Clients that are tried for the peak.")] = "4,8,16",
    pictures: Annotated[int, typer.Option(min=1, help="How many pictures take turns.")] = 12,
    people: Annotated[int, typer.Option(min=0, help="People in each; as many are posed at most.")] = 3,
    deadline: Annotated[float, typer.Option(help="Seconds; sent as X-Request-Timeout. 0: the service's own.")] = 0.0,
    default_deadline: Annotated[float, typer.Option(help="The service's own deadline in seconds.")] = 30.0,
    most_refusal_ms: Annotated[float, typer.Option(help="Limit: p95 of the 429s.")] = 20.0,
    least_goodput: Annotated[float, typer.Option(help="Limit: goodput as a part of the peak.")] = 0.9,
    api_key: Annotated[str | None, typer.Option(envvar="TRITONPOSE_API_KEY", help="Key for --url.")] = None,
    out: Annotated[Path | None, typer.Option(help="File for the JSON of the last line.")] = None,
) -> None:
    """Offer many times the peak and measure refusals and goodput."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    if deadline:
        headers["X-Request-Timeout"] = f"{deadline:g}"
    options = Options([int(n) for n in clients.split(",")], seconds, rounds, times, headers)
    say = Console(stderr=True, highlight=False)
    with running_service(url) as (target, service):
        with PoseClient(target, api_key) as client:
            posted = rendered_pictures(pictures, people)
            cases = learn(client, posted, [{"max_people": str(max(1, people))}])
        pid = service.pid if service else None
        best, measured = uvloop.run(measure(target, cases, options, pid, say))
    limit = deadline or default_deadline
    summary = summarize(measured, best)
    verdict = judge(
        summary,
        f"{times:g} times the peak of {best} clients, {rounds} rounds of {seconds:g} s",
        most_refusal_ms=most_refusal_ms,
        least_goodput=least_goodput,
        deadline=limit,
    )
    examples = [reason for one in measured for reason in one.answers.wrong]
    verdict.end(summary, examples, out)


def judge(
    summary: dict[str, Any], title: str, *, most_refusal_ms: float, least_goodput: float, deadline: float
) -> Verdict:
    """The lines of :func:`summarize` beside their limits; ``deadline`` is in seconds.

    Where nothing was refused there was no overload, and nothing has been shown.
    """
    verdict = Verdict(title)
    verdict.line("peak, right answers/s", f"{summary['peak']:.2f}")
    verdict.line("offered/s", f"{summary['offered']:.0f}")
    verdict.line("answers by status (0: none)", summary["statuses"])
    refusal = summary["refused_p95_ms"]
    verdict.line(
        "429s, p95",
        shown_ms(refusal),
        f"{most_refusal_ms:g} ms",
        kept=refusal is not None and refusal <= most_refusal_ms,
    )
    verdict.line("429s, p50 and p99", f"{shown_ms(summary['refused_p50_ms'])}, {shown_ms(summary['refused_p99_ms'])}")
    verdict.line("Retry-After, least and most", f"{summary['retry_after']} s")
    verdict.line("5xx", summary["server_errors"], "0", kept=summary["server_errors"] == 0)
    part = summary["goodput_part"]
    spread = f"{part:.3f} ({min(summary['goodput_parts']):.3f} to {max(summary['goodput_parts']):.3f})"
    verdict.line("goodput over peak, median", spread, f"{least_goodput:g}", kept=part >= least_goodput)
    p99 = summary["accepted_p99_ms"]
    verdict.line("accepted, p99", shown_ms(p99), f"{deadline:g} s", kept=p99 is not None and p99 <= deadline * 1000)
    verdict.line("accepted, p50", shown_ms(summary["accepted_p50_ms"]))
    verdict.line("wrong or lost answers", summary["wrong"], "0", kept=summary["wrong"] == 0)
    verdict.line("generator: CPU for a request", f"{summary['client_cpu_ms']:.3f} ms")
    verdict.line("service: CPU for a request offered", shown_ms(summary["server_cpu_ms"]))
    verdict.line("generator: lateness, p95", shown_ms(summary["lateness_p95_ms"]))
    return verdict


def summarize(rounds: Sequence[Round], clients: int) -> dict[str, Any]:
    """The last line: medians over the rounds, percentiles over all requests."""
    statuses = sum((one.answers.statuses for one in rounds), Counter[int]())
    refused = [seconds for one in rounds for seconds in one.answers.refused]
    accepted = [seconds for one in rounds for seconds in one.answers.accepted]
    waits = [seconds for one in rounds for seconds in one.answers.retry_after]
    parts = [one.goodput / one.peak if one.peak else 0.0 for one in rounds]
    servers = [one.server_cpu for one in rounds if one.server_cpu is not None]
    return {
        "clients": clients,
        "peak": round(float(np.median([one.peak for one in rounds])), 3),
        "offered": round(float(np.median([one.offered for one in rounds])), 2),
        "goodput": round(float(np.median([one.goodput for one in rounds])), 3),
        "goodput_part": round(float(np.median(parts)), 4),
        "goodput_parts": [round(part, 4) for part in parts],
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "server_errors": sum(count for status, count in statuses.items() if status >= 500),
        "refused_p50_ms": percentile_ms(refused, 50),
        "refused_p95_ms": percentile_ms(refused, 95),
        "refused_p99_ms": percentile_ms(refused, 99),
        "retry_after": [min(waits), max(waits)] if waits else [],
        "accepted_p50_ms": percentile_ms(accepted, 50),
        "accepted_p99_ms": percentile_ms(accepted, 99),
        "wrong": sum(len(one.answers.wrong) for one in rounds),
        "client_cpu_ms": round(1000 * float(np.mean([one.client_cpu for one in rounds])), 4),
        "server_cpu_ms": round(1000 * float(np.mean(servers)), 3) if servers else None,
        "lateness_p95_ms": percentile_ms([late for one in rounds for late in one.arrivals.lateness], 95),
    }


if __name__ == "__main__":
    typer.run(main)
