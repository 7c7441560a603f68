"""``python -m loadtest.rolling``: two instances behind a balancer are restarted one after the other, under load.

Each gets SIGTERM: it calls itself not ready, the balancer sends it nothing more, it answers what it has and exits with
0; then it is started again on the same port. Callers in a closed loop must notice nothing: every request gets its right
answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from loadtest.balancer import Balancer
from loadtest.cases import Case, Checked, learn
from loadtest.pictures import rendered_pictures
from loadtest.server import ServiceProcess
from loadtest.verdict import Verdict, percentile_ms, shown_ms
from loadtest.wire import ConnectionLost, OutOfPatience, Wire
from service.client import PoseClient

_START_SECONDS = 180.0


@dataclass
class Rolled:
    """What happened. Seconds."""

    restarts: list[str] = field(default_factory=list)
    exit_codes: list[int | None] = field(default_factory=list)
    stop_seconds: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    resent: int = 0
    wire_resent: int = 0


async def roll(
    instances: list[ServiceProcess],
    restart: Callable[[int], ServiceProcess],
    cases: Sequence[Case],
    callers: int,
    rounds: int,
    seconds: float,
    say: Console,
) -> Rolled:
    """Load, and restart every instance ``rounds`` times, with ``seconds`` of peace between."""
    rolled, checked, over = Rolled(), Checked(), False
    requests = [case.request() for case in cases]
    async with Balancer([one.url for one in instances]) as balancer, Wire(balancer.url) as wire:
        await _until(lambda: all(balancer.ready), "the instances are not ready")

        async def caller(number: int) -> None:
            while not over:
                case, request = cases[number % len(cases)], requests[number % len(cases)]
                number += callers
                try:
                    reply = await wire.ask(request, patience=120)
                except (ConnectionLost, OutOfPatience) as error:
                    rolled.failures.append(repr(error))
                    continue
                if reply.status != 200:
                    rolled.failures.append(f"HTTP {reply.status}: {reply.body[:200]!r}")
                elif reason := checked.wrong(case, reply.body):
                    rolled.failures.append(f"{case.picture.name}: {reason}")
                else:
                    rolled.latencies.append(reply.seconds)

        load = asyncio.gather(*(caller(number) for number in range(callers)))
        try:
            await asyncio.sleep(seconds)
            for place in [*range(len(instances))] * rounds:
                began, answered = time.monotonic(), len(rolled.latencies)
                code = await asyncio.to_thread(instances[place].stop)
                stopped = time.monotonic() - began
                instances[place] = await asyncio.to_thread(restart, place)
                await _until(lambda place=place: balancer.ready[place], "the new instance is not ready")  # type: ignore[misc]
                done = f"ended with {code} in {stopped:.1f} s, ready again after {time.monotonic() - began:.1f} s"
                rolled.restarts.append(f"{done}, {len(rolled.latencies) - answered} answers meanwhile")
                rolled.exit_codes.append(code)
                rolled.stop_seconds.append(stopped)
                say.print(f"instance {place} {rolled.restarts[-1]}")
                await asyncio.sleep(seconds)
        finally:
            over = True
            await load
        rolled.sent, rolled.resent, rolled.wire_resent = balancer.sent, balancer.resent, wire.resent
        rolled.failures += balancer.broken
    return rolled


async def _until(reached: Callable[[], bool], complaint: str) -> None:
    end = time.monotonic() + _START_SECONDS
    while not reached():
        if time.monotonic() > end:
            raise RuntimeError(complaint)
        await asyncio.sleep(0.05)


def main(
    instances: Annotated[int, typer.Option(min=2, help="How many instances.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="How often each of them is restarted.")] = 2,
    seconds: Annotated[float, typer.Option(min=0, help="Load before the first restart, between them and after.")] = 5.0,
    callers: Annotated[int, typer.Option(min=1, help="Callers, each with one request in flight.")] = 4,
    pictures: Annotated[int, typer.Option(min=1, help="How many pictures take turns.")] = 6,
    drain: Annotated[float, typer.Option(help="TRITONPOSE_DRAIN_SECONDS of the instances.")] = 1.0,
    most_stop: Annotated[float, typer.Option(help="Limit: seconds from SIGTERM to the end.")] = 30.0,
    out: Annotated[Path | None, typer.Option(help="File for the JSON of the last line.")] = None,
) -> None:
    """Restart instances under load; no request may fail."""
    settings = {"TRITONPOSE_DRAIN_SECONDS": f"{drain:g}"}
    say = Console(stderr=True, highlight=False)
    with contextlib.ExitStack() as stack:
        running: list[ServiceProcess] = []
        stack.callback(lambda: [one.stop() for one in running])  # those that run by then
        for _ in range(instances):
            running.append(ServiceProcess(settings, start_seconds=_START_SECONDS).__enter__())

        def restart(place: int) -> ServiceProcess:
            return ServiceProcess(settings, start_seconds=_START_SECONDS, port=running[place].port).__enter__()

        with PoseClient(running[0].url) as client:
            cases = learn(client, rendered_pictures(pictures, (1, 3)))
        rolled = uvloop.run(roll(running, restart, cases, callers, rounds, seconds, say))
    verdict = Verdict(f"{instances} instances, {len(rolled.restarts)} restarts, {callers} callers")
    for restarted in rolled.restarts:
        verdict.line("restart", restarted)
    verdict.line("requests", len(rolled.latencies) + len(rolled.failures))
    verdict.line("handed to each instance", rolled.sent)
    verdict.line("failed requests", len(rolled.failures), "0", kept=not rolled.failures)
    resent = rolled.resent + rolled.wire_resent
    verdict.line("sent again after a lost connection", resent, "0", kept=resent == 0)
    codes = sorted({str(code) for code in rolled.exit_codes})
    verdict.line("exit codes", ", ".join(codes), "0", kept=codes == ["0"])
    slowest = max(rolled.stop_seconds)
    verdict.line("SIGTERM to the end, longest", f"{slowest:.1f} s", f"{most_stop:g} s", kept=slowest <= most_stop)
    verdict.line("latency, p50", shown_ms(percentile_ms(rolled.latencies, 50)))
    verdict.line("latency, p99", shown_ms(percentile_ms(rolled.latencies, 99)))
    summary = {
        "instances": instances,
        "restarts": len(rolled.restarts),
        "requests": len(rolled.latencies) + len(rolled.failures),
        "failed": len(rolled.failures),
        "resent": resent,
        "exit_codes": rolled.exit_codes,
        "longest_stop_s": round(slowest, 2),
        "p50_ms": percentile_ms(rolled.latencies, 50),
        "p99_ms": percentile_ms(rolled.latencies, 99),
    }
    verdict.end(summary, rolled.failures, out)


if __name__ == "__main__":
    typer.run(main)
