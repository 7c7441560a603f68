"""``make soak``: half an hour of good and bad requests, and whether the service's memory grows.

Resident memory is sampled every second. After a warm-up its growth is what the medians of the first and last fifth
differ by, or what the slope makes of the time, whichever is more. Then, for a few minutes, the same load goes to
a server with a leak planted around it (:mod:`loadtest.leaky`): the very same check has to catch that one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from loadtest.cases import Case, learn
from loadtest.crowd import Crowd, Manners, Tally
from loadtest.memory import Growth, MemoryWatch, growth
from loadtest.pictures import LoadPicture, mixed_pictures
from loadtest.server import ServiceProcess
from loadtest.verdict import Verdict, percentile_ms, shown_ms
from loadtest.wellness import complaints
from loadtest.wire import Wire
from service.client import PoseClient


@dataclass(frozen=True)
class Soaked:
    """One server under one load."""

    tally: Tally
    growth: Growth
    seconds: list[float]
    mb: list[float]
    complaints: list[str]


def soak(
    pictures: Sequence[LoadPicture], minutes: float, callers: int, program: Sequence[str] | None = None, seed: int = 0
) -> Soaked:
    """Load a server that is started for it; ``program`` as in :class:`loadtest.server.ServiceProcess`."""
    server = (
        ServiceProcess(start_seconds=180) if program is None else ServiceProcess(start_seconds=180, program=program)
    )
    with server:
        with PoseClient(server.url) as client:
            cases = learn(client, pictures)
        with MemoryWatch(server.pid, every=min(1.0, minutes * 60 / 100)) as watch:
            tally = uvloop.run(_load(server.url, cases, minutes * 60, callers, seed, program is not None))
        # A server that leaks is done with once it is caught.
        found = complaints(server.url, cases) if program is None else []
    return Soaked(tally, growth(watch.seconds, watch.mb), watch.seconds, watch.mb, found)


async def _load(url: str, cases: Sequence[Case], seconds: float, callers: int, seed: int, control: bool) -> Tally:
    end = time.monotonic() + seconds
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("planted leak" if control else "soak", total=seconds)

        def goes_on() -> bool:
            progress.update(task, completed=min(seconds, seconds - (end - time.monotonic())))
            return time.monotonic() < end

        async with Wire(url) as wire:
            crowd = Crowd(wire, cases, Manners(), seed=seed)
            await crowd.run(callers, goes_on)
    return crowd.tally


def plot(runs: Sequence[tuple[str, Soaked]], path: Path) -> None:
    """Memory over time, one line a run; the kind of file is the suffix's (.png, .svg)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for name, run in runs:
        axes.plot([s / 60 for s in run.seconds], run.mb, label=f"{name}: {run.growth.mb:+.1f} MB")
    axes.set(xlabel="minutes", ylabel="resident memory, MB", ylim=(0, None), title="Mixed good and bad load")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def main(
    minutes: Annotated[float, typer.Option(min=0.05, help="Length of the soak.")] = 30.0,
    control_minutes: Annotated[
        float, typer.Option(min=0, help="Length of the run with a leak; 0 leaves it out.")
    ] = 5.0,
    leak: Annotated[int, typer.Option(min=4, help="Bytes that each request leaves behind in that run.")] = 100_000,
    callers: Annotated[int, typer.Option(min=1, help="Callers, each with one request in flight.")] = 6,
    pictures: Annotated[int, typer.Option(min=1, help="How many pictures take turns.")] = 12,
    most_growth: Annotated[float, typer.Option(help="Limit of the growth, in MB.")] = 50.0,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Picture of the memory over time.")] = None,
    out: Annotated[Path | None, typer.Option(help="File for the JSON of the last line.")] = None,
) -> None:
    """Soak the service, then prove that the check finds a leak."""
    posted = mixed_pictures(pictures)
    run = soak(posted, minutes, callers)
    runs = [("service", run)]
    control = (
        soak(posted, control_minutes, callers, ("loadtest.leaky", "--leak", str(leak))) if control_minutes else None
    )
    if control is not None:
        runs.append((f"with {leak} bytes leaked a request", control))
    if plot_file is not None:
        plot(runs, plot_file)
    tally = run.tally
    verdict = Verdict(f"{minutes:g} minutes, {callers} callers, {tally.ended} requests")
    for name, number in tally.statuses().items():
        verdict.line(f"requests: {name}", number)
    verdict.line("wrong answers", len(tally.wrong), "0", kept=not tally.wrong)
    verdict.line("hung requests", tally.hanging, "0", kept=tally.hanging == 0)
    verdict.line("well afterwards", "; ".join(run.complaints) or "yes", "yes", kept=not run.complaints)
    verdict.line("latency of right answers, p50", shown_ms(percentile_ms(tally.latencies, 50)))
    first_last = f"{run.growth.first:.1f} MB, {run.growth.last:.1f} MB"
    verdict.line("memory after the warm-up and at the end", first_last)
    verdict.line("memory, peak", f"{run.growth.peak:.1f} MB")
    verdict.line("slope", f"{run.growth.slope:+.3f} MB a minute")
    grown = run.growth.mb
    verdict.line("growth", f"{grown:.1f} MB", f"{most_growth:g} MB", kept=grown <= most_growth)
    if control is not None:
        caught = control.growth.mb > most_growth
        verdict.line(
            f"the same check, {leak} bytes leaked a request",
            f"{control.growth.mb:.1f} MB in {control_minutes:g} minutes, {control.tally.ended} requests",
            f"over {most_growth:g} MB",
            kept=caught,
        )
    summary = {
        "minutes": minutes,
        "requests": tally.ended,
        "outcomes": tally.statuses(),
        "wrong": len(tally.wrong),
        "hung": tally.hanging,
        "first_mb": round(run.growth.first, 1),
        "last_mb": round(run.growth.last, 1),
        "peak_mb": round(run.growth.peak, 1),
        "slope_mb_per_minute": round(run.growth.slope, 4),
        "growth_mb": round(grown, 1),
        "control_growth_mb": None if control is None else round(control.growth.mb, 1),
        "control_requests": None if control is None else control.tally.ended,
        "complaints": run.complaints,
    }
    verdict.end(summary, [*tally.wrong, *tally.hung], out)


if __name__ == "__main__":
    typer.run(main)
