"""``python -m loadtest.fuzz``: twenty thousand damaged inputs against the running service, under a cap on its memory.

Nothing may be answered with a 5xx, break the connection, hang or end the process; what is refused is refused as
problem+json with a status that fits, and what is answered is finite numbers. The service may use so much address space
and no more (``RLIMIT_AS``): a picture that makes it ask for more fails there and not on a machine in use. Its resident
memory is sampled. Input N of a seed is always the same one: ``--only N`` repeats it, and a failing request is saved as
it was sent.
"""

from __future__ import annotations

import asyncio
import json
import math
import resource
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from loadtest.corpus import Specimen, corpus
from loadtest.memory import MemoryWatch
from loadtest.mutations import Input, make_input
from loadtest.server import ServiceProcess, running_service
from loadtest.verdict import Verdict, percentile_ms, shown_ms
from loadtest.wire import ConnectionLost, OutOfPatience, Reply, Wire, request_bytes

_PATIENCE = 120.0
_RETRIES = 120
_PROBLEM = "application/problem+json"


@dataclass
class Fuzzed:
    """What came back: statuses, seconds, and what was wrong with which input."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    failures: list[tuple[int, str]] = field(default_factory=list)


def fault(given: Input, reply: Reply) -> str | None:
    """What is wrong with an answer; None when it is sound."""
    if reply.status not in given.statuses:
        return f"HTTP {reply.status} instead of {sorted(given.statuses)}: {reply.body[:300]!r}"
    kind = reply.headers.get("content-type", "")
    if reply.status != 200:
        try:
            problem = json.loads(reply.body)
            told = kind == _PROBLEM and problem["status"] == reply.status and problem["type"] and problem["detail"]
        except (ValueError, KeyError, TypeError):
            told = False
        return None if told else f"HTTP {reply.status} without a problem: {kind} {reply.body[:300]!r}"
    if kind.startswith("image/"):
        return None if reply.body else "an empty picture"
    try:
        document = json.loads(reply.body)
        people = document["annotations"] if isinstance(document, dict) else document
        numbers = [number for person in people for number in (*person["keypoints"], person["score"])]
    except (ValueError, KeyError, TypeError) as error:
        return f"an answer that cannot be read: {error!r} {reply.body[:300]!r}"
    return None if all(math.isfinite(number) for number in numbers) else "numbers that are not finite"


async def fuzz(url: str, specimens: Sequence[Specimen], seed: int, numbers: Sequence[int], callers: int) -> Fuzzed:
    """Send the inputs of these numbers; stops early when the service is gone."""
    found, waiting = Fuzzed(), iter(numbers)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("inputs", total=len(numbers))
        async with Wire(url) as wire:

            async def caller() -> None:
                for number in waiting:
                    given = make_input(specimens, seed, number)
                    try:
                        # A connection of its own: what is lost was lost by this input and no other.
                        reply = await _ask(wire, given.request)
                    except (ConnectionLost, OutOfPatience) as error:
                        found.statuses[0] += 1
                        found.failures.append((number, f"{given.name}: {error!r}"))
                        if not await _lives(wire):
                            return
                        continue
                    finally:
                        progress.advance(bar)
                    found.statuses[reply.status] += 1
                    found.seconds.append(reply.seconds)
                    if reason := fault(given, reply):
                        found.failures.append((number, f"{given.name}: {reason}"))

            await asyncio.gather(*(caller() for _ in range(callers)))
    return found


async def _ask(wire: Wire, request: bytes) -> Reply:
    """Ask, and again where the service is busy: a 429 is sound, but says nothing about the input."""
    for _ in range(_RETRIES):
        reply = await wire.ask(request, patience=_PATIENCE, fresh=True)
        if reply.status != 429:
            break
        await asyncio.sleep(0.5)
    return reply


async def _lives(wire: Wire) -> bool:
    try:
        return (await wire.ask(request_bytes("/v1/health/live", method="GET"), patience=30, fresh=True)).status == 200
    except (ConnectionLost, OutOfPatience):
        return False


def cap_address_space(pid: int, more: float) -> float | None:
    """Let a process map so many MB more than now and no more; the limit in MB, None where the system has no prlimit."""
    if not hasattr(resource, "prlimit"):
        return None
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmSize:"):
            limit = int(line.split()[1]) * 1024 + int(more * 1e6)
            resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
            return limit / 1e6
    return None


def main(
    inputs: Annotated[int, typer.Option(min=1, help="How many inputs.")] = 20_000,
    seed: Annotated[int, typer.Option(help="The same one makes the same inputs.")] = 0,
    only: Annotated[int | None, typer.Option(help="Send only the input of this number.")] = None,
    callers: Annotated[int, typer.Option(min=1, help="Connections at a time.")] = 4,
    address_space: Annotated[
        float, typer.Option(help="MB that the service may map beyond what it has when idle.")
    ] = 2000,
    most_memory: Annotated[float, typer.Option(help="Limit of its resident memory, in MB.")] = 1500,
    failures: Annotated[Path, typer.Option(help="Folder for the requests that failed.")] = Path("runs/fuzz"),
    url: Annotated[
        str | None, typer.Option(help="Service that runs already (no cap); by default one is started.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File for the JSON of the last line.")] = None,
) -> None:
    """Fuzz the service over HTTP."""
    specimens = corpus()
    numbers = range(inputs) if only is None else [only]
    began = time.monotonic()
    with running_service(url) as (target, service):
        cap = cap_address_space(service.pid, address_space) if service else None
        found, memory = _watched(target, service, specimens, seed, numbers, callers)
        alive = uvloop.run(_alive(target))
    for number, reason in found.failures:
        failures.mkdir(parents=True, exist_ok=True)
        (failures / f"{seed}-{number}.http").write_bytes(make_input(specimens, seed, number).request)
        (failures / f"{seed}-{number}.txt").write_text(reason + "\n")
    sent = sum(found.statuses.values())
    verdict = Verdict(f"{sent} inputs from {len(specimens)} specimens, seed {seed}, {time.monotonic() - began:.0f} s")
    for status, count in sorted(found.statuses.items()):
        verdict.line(f"HTTP {status}" if status else "no answer", count)
    verdict.line("sent", sent, str(len(numbers)), kept=sent == len(numbers))
    errors = sum(count for status, count in found.statuses.items() if status >= 500)
    verdict.line("5xx", errors, "0", kept=errors == 0)
    verdict.line("unsound answers, lost and hung connections", len(found.failures), "0", kept=not found.failures)
    verdict.line("alive afterwards", "yes" if alive else "no", "yes", kept=alive)
    verdict.line("slowest answer", shown_ms(percentile_ms(found.seconds, 100)))
    if memory:
        peak = max(memory)
        verdict.line("resident memory, peak", f"{peak:.0f} MB", f"{most_memory:g} MB", kept=peak <= most_memory)
    if cap:
        verdict.line("address space, cap", f"{cap:.0f} MB")
    summary: dict[str, Any] = {
        "inputs": sent,
        "specimens": len(specimens),
        "seed": seed,
        "statuses": {str(status): count for status, count in sorted(found.statuses.items())},
        "server_errors": errors,
        "failures": len(found.failures),
        "alive": alive,
        "peak_mb": round(max(memory), 1) if memory else None,
        "address_space_mb": None if cap is None else round(cap),
    }
    examples = [f"input {number}: {reason}" for number, reason in found.failures]
    verdict.end(summary, examples, out)


def _watched(
    url: str,
    service: ServiceProcess | None,
    specimens: Sequence[Specimen],
    seed: int,
    numbers: Sequence[int],
    callers: int,
) -> tuple[Fuzzed, list[float]]:
    if service is None:
        return uvloop.run(fuzz(url, specimens, seed, numbers, callers)), []
    with MemoryWatch(service.pid, every=0.2) as watch:
        found = uvloop.run(fuzz(url, specimens, seed, numbers, callers))
    return found, watch.mb


async def _alive(url: str) -> bool:
    async with Wire(url) as wire:
        return await _lives(wire)


if __name__ == "__main__":
    typer.run(main)
