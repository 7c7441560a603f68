"""``python -m loadtest.own_time``: what the gateway itself adds to a request.

One client posts a picture again and again. ``Server-Timing`` tells the stages of each request and their total; what is
neither decoding, cropping nor the networks is the gateway's own: reading and parsing the body, the queue, the
letterbox, suppression, scores, JSON, and all between the stages. Beside it stands what the caller saw on top of the
total: the HTTP server, the loopback, and the client's own parsing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import uvloop
from rich.console import Console
from rich.progress import Progress

from loadtest.cases import Case, Checked, learn
from loadtest.pictures import rendered_pictures
from loadtest.server import running_service
from loadtest.verdict import Verdict, percentile_ms, shown_ms
from loadtest.wire import Wire
from service.client import PoseClient

# The stages that would be there without a gateway.
NOT_OWN = ("decode", "crop", "detector", "pose")
_TOTAL = "total"


def stages(server_timing: str) -> dict[str, float]:
    """Seconds by stage of a ``Server-Timing`` header. Raises ValueError when a stage is missing."""
    found = {name: float(value) / 1000 for name, value in re.findall(r"([\w.-]+);dur=([\d.]+)", server_timing)}
    missing = {*NOT_OWN, _TOTAL} - found.keys()
    if missing:
        raise ValueError(f"Server-Timing names no stage {', '.join(sorted(missing))}: {server_timing!r}")
    return found


def own_seconds(timing: Mapping[str, float]) -> float:
    """The total less what is not the gateway's own."""
    return timing[_TOTAL] - sum(timing[name] for name in NOT_OWN)


async def _ask(
    url: str, cases: Sequence[Case], headers: Mapping[str, str], warm_up: int, requests: int
) -> tuple[list[dict[str, float]], list[float], list[str]]:
    """Stages of each request, seconds seen by the caller, and what was wrong."""
    timings: list[dict[str, float]] = []
    seen: list[float] = []
    wrong: list[str] = []
    checked = Checked()
    requested = [case.request(headers) for case in cases]
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("one client", total=warm_up + requests)
        async with Wire(url) as wire:
            for number in range(warm_up + requests):
                case = cases[number % len(cases)]
                reply = await wire.ask(requested[number % len(cases)])
                progress.advance(task)
                reason = checked.wrong(case, reply.body) if reply.status == 200 else f"HTTP {reply.status}"
                if reason:
                    wrong.append(f"{case.picture.name}: {reason}")
                elif number >= warm_up:
                    timings.append(stages(reply.headers.get("server-timing", "")))
                    seen.append(reply.seconds)
    return timings, seen, wrong


def main(
    url: Annotated[str | None, typer.Option(help="Service that runs already; by default one is started.")] = None,
    requests: Annotated[int, typer.Option(min=5, help="How many requests are measured.")] = 500,
    warm_up: Annotated[int, typer.Option(min=0, help="Requests before them.")] = 50,
    pictures: Annotated[int, typer.Option(min=1, help="How many pictures take turns.")] = 6,
    people: Annotated[int, typer.Option(min=1, help="People in each; as many are posed at most.")] = 3,
    size: Annotated[tuple[int, int], typer.Option(help="Width and height of the JPEGs.")] = (640, 480),
    most_ms: Annotated[float, typer.Option(help="Limit: p50 of the gateway's own time.")] = 2.0,
    api_key: Annotated[str | None, typer.Option(envvar="TRITONPOSE_API_KEY", help="Key for --url.")] = None,
    out: Annotated[Path | None, typer.Option(help="File for the JSON of the last line.")] = None,
) -> None:
    """Measure the gateway's own time."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    with running_service(url) as (target, _):
        with PoseClient(target, api_key) as client:
            cases = learn(client, rendered_pictures(pictures, people, size=size), [{"max_people": str(people)}])
        timings, seen, wrong = uvloop.run(_ask(target, cases, headers, warm_up, requests))
    if not timings:
        raise RuntimeError(f"no request was answered rightly: {wrong[:3]}")
    own = [own_seconds(timing) for timing in timings]
    names = list(dict.fromkeys(name for timing in timings for name in timing if name != _TOTAL))
    between = [timing[_TOTAL] - sum(timing[name] for name in timing if name != _TOTAL) for timing in timings]
    p50 = percentile_ms(own, 50)
    verdict = Verdict(f"{len(timings)} requests of a {size[0]}x{size[1]} JPEG, one client, medians")
    for name in names:
        mark = "" if name in NOT_OWN else "  own: "
        verdict.line(mark + name, _shown([timing.get(name, 0.0) for timing in timings]))
    verdict.line("  own: between the stages", _shown(between))
    verdict.line(_TOTAL, _shown([timing[_TOTAL] for timing in timings]))
    verdict.line("gateway's own, p50", shown_ms(p50), f"{most_ms:g} ms", kept=p50 is not None and p50 <= most_ms)
    verdict.line("gateway's own, p95", shown_ms(percentile_ms(own, 95)))
    outside = [one - timing[_TOTAL] for one, timing in zip(seen, timings, strict=True)]
    verdict.line("seen by the caller on top, p50", _shown(outside))
    verdict.line("wrong answers", len(wrong), "0", kept=not wrong)
    summary: dict[str, Any] = {
        "own_p50_ms": p50,
        "own_p95_ms": percentile_ms(own, 95),
        "total_p50_ms": percentile_ms([timing[_TOTAL] for timing in timings], 50),
        "outside_p50_ms": percentile_ms(outside, 50),
        "stages_p50_ms": {name: percentile_ms([t.get(name, 0.0) for t in timings], 50) for name in names},
        "requests": len(timings),
        "wrong": len(wrong),
    }
    verdict.end(summary, wrong, out)


def _shown(seconds: Sequence[float]) -> str:
    return f"{float(np.median(seconds)) * 1000:.2f} ms"


if __name__ == "__main__":
    typer.run(main)
