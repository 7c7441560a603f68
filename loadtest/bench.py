"""``python -m loadtest.bench``: throughput of the running service against its networks alone, as one ratio.

Rounds of the two take turns, so that a machine that is busier for a while is busier for both; one of each goes before
them and is not counted. The last line is one JSON object. Memory and latency are the service's own; clients and the
bound run in other processes.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from loadtest.agreement import Recall, recall
from loadtest.bound import Bound, Recording
from loadtest.closed_loop import ClosedLoop, Outcome
from loadtest.pictures import LoadPicture, folder_pictures, rendered_pictures
from loadtest.server import ServiceProcess, cpu_seconds
from service.client import PoseClient

_TYPICAL_PEOPLE = 3


@dataclass(frozen=True)
class Measured:
    """Everything that was measured; times in seconds."""

    recording: Recording
    warm: Outcome
    service: list[Outcome]
    bound: list[float]
    service_cpu: float | None
    bound_cpu: float | None
    single: Outcome
    single_people: int
    resident_mb: float | None
    recall: Recall
    clients: int

    @property
    def ratio(self) -> float:
        """Median over the rounds of service over bound: one disturbed round does not decide."""
        return float(np.median(self.ratios)) if self.ratios else 0.0

    @property
    def ratios(self) -> list[float]:
        """Of each round in which both completed enough to tell."""
        pairs = zip(self.service, self.bound, strict=True)
        return [one.rate / bound for one, bound in pairs if one.rate > 0 and bound > 0]

    @property
    def failures(self) -> list[str]:
        """Every wrong answer, in words."""
        return [failure for one in [self.warm, *self.service, self.single] for failure in one.failures]

    def latency_ms(self, percent: float) -> float | None:
        """Percentile of the requests under load."""
        return _percentile([s for one in self.service for s in one.latencies], percent)

    def as_json(self) -> dict[str, Any]:
        """The last line."""
        return {
            "ratio": round(self.ratio, 4),
            "ratios": [round(ratio, 4) for ratio in self.ratios],
            "clients": self.clients,
            "service_per_second": round(float(np.mean([one.rate for one in self.service])), 3),
            "bound_per_second": round(float(np.mean(self.bound)), 3),
            "p50_ms": self.latency_ms(50),
            "p95_ms": self.latency_ms(95),
            "p99_ms": self.latency_ms(99),
            "service_cpu_ms": None if self.service_cpu is None else round(self.service_cpu * 1000, 2),
            "bound_cpu_ms": None if self.bound_cpu is None else round(self.bound_cpu * 1000, 2),
            "single_p50_ms": _percentile(self.single.latencies, 50),
            "single_people": self.single_people,
            "people_per_picture": round(float(np.mean(self.recording.people)), 2),
            "crops_per_picture": round(float(np.mean(self.recording.rows)), 2),
            "resident_mb": None if self.resident_mb is None else round(self.resident_mb, 1),
            "answers": sum(len(one.latencies) for one in self.service),
            "wrong": len(self.failures),
        }


def main(
    url: Annotated[str | None, typer.Option(help="Service that runs already; by default one is started.")] = None,
    clients: Annotated[int, typer.Option(min=1, help="Connections, each with one request in flight.")] = 4,
    seconds: Annotated[float, typer.Option(min=0.2, help="Length of a round.")] = 5.0,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of service and bound, in turn.")] = 5,
    pictures: Annotated[int, typer.Option(min=1, help="How many pictures take turns.")] = 12,
    people: Annotated[int, typer.Option(min=0, help="People in a rendered picture.")] = _TYPICAL_PEOPLE,
    max_people: Annotated[int, typer.Option(min=1, help="Most people that are posed in each.")] = _TYPICAL_PEOPLE,
    size: Annotated[tuple[int, int], typer.Option(help="Width and height of a rendered picture.")] = (640, 480),
    folder: Annotated[Path | None, typer.Option(help="Pictures to post instead of rendered ones.")] = None,
    model: Annotated[str, typer.Option(help="Pose model.")] = "pose",
    api_key: Annotated[str | None, typer.Option(envvar="TRITONPOSE_API_KEY", help="Key for --url.")] = None,
    least_ratio: Annotated[float, typer.Option(help="Exit with 1 below this ratio.")] = 0.0,
) -> None:
    """Compare the service's throughput with its networks' own."""
    console = Console()
    try:
        posted = folder_pictures(folder, pictures) if folder else rendered_pictures(pictures, people, size=size)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    # With a bound on the people, the work stays the same whatever else a detector takes for a person.
    options = {"model": model, "max_people": str(max_people)}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress, contextlib.ExitStack() as stack:
        task = progress.add_task("recording the networks' calls", total=2 * rounds + 2)
        bound = stack.enter_context(Bound([picture.data for picture in posted], options))
        progress.update(task, description="starting the service")
        server = stack.enter_context(ServiceProcess()) if url is None else None
        target = url or (server.url if server else "")
        with PoseClient(target, api_key) as client:
            expected = [client.pose(picture.data, model=model, max_people=max_people) for picture in posted]
        _check_same_work(expected, bound.recording, posted)
        load = ClosedLoop(target, posted, expected, options=options, api_key=api_key)
        progress.update(task, description="warming both up", advance=1)
        warm = load.run(clients, seconds)  # arenas and caches grow under load: the first seconds are 5 to 10 % slower
        bound.run(seconds)
        served, bounds = [], []
        service_cpu, bound_cpu = _CpuTime(server.pid if server else None), _CpuTime(bound.pid)
        for _ in range(rounds):
            progress.update(task, description=f"service, {clients} clients", advance=1)
            served.append(load.run(clients, seconds))
            progress.update(task, description="networks alone", advance=1)
            bounds.append(bound.run(seconds))
        per_picture = service_cpu.passed(sum(o.posted for o in served)), bound_cpu.passed(sum(n for _, n in bounds))
        progress.update(task, description="service, 1 client", advance=1)
        chosen = _typical(bound.recording)
        alone = ClosedLoop(
            target, [posted[k] for k in chosen], [expected[k] for k in chosen], options=options, api_key=api_key
        )
        single = alone.run(1, seconds)
        found = [recall(p.scene, a) for p, a in zip(posted, expected, strict=True) if p.scene is not None]
        measured = Measured(
            recording=bound.recording,
            warm=warm,
            service=served,
            bound=[speed for speed, _ in bounds],
            service_cpu=per_picture[0],
            bound_cpu=per_picture[1],
            single=single,
            single_people=bound.recording.rows[chosen[0]],
            resident_mb=server.resident_mb() if server else None,
            recall=sum(found, Recall()),
            clients=clients,
        )
    console.print(_table(measured, posted))
    for failure in measured.failures[:5]:
        console.print(f"[red]wrong[/red] {failure}", highlight=False)
    print(json.dumps(measured.as_json()))
    if measured.failures or not measured.ratios or measured.ratio < least_ratio:
        raise typer.Exit(1)


class _CpuTime:
    """CPU seconds of a process for each picture: they tell what a service costs on a machine that is busy."""

    def __init__(self, pid: int | None) -> None:
        self._pid = pid
        self._start = cpu_seconds(pid) if pid else None

    def passed(self, pictures: int) -> float | None:
        now = cpu_seconds(self._pid) if self._pid else None
        return None if now is None or self._start is None or not pictures else (now - self._start) / pictures


def _check_same_work(expected: list[Any], recording: Recording, posted: list[LoadPicture]) -> None:
    """The bound is only one when both found the same people."""
    answered = [len(answer["annotations"]) for answer in expected]
    if answered != recording.people:
        names = [p.name for p, a, b in zip(posted, answered, recording.people, strict=True) if a != b]
        raise RuntimeError(f"the service at --url serves other models than this checkout: other people in {names}")


def _typical(recording: Recording) -> list[int]:
    """Pictures of as nearly three posed people as there are: those for the latency of one client."""
    nearest = min(recording.rows, key=lambda rows: (abs(rows - _TYPICAL_PEOPLE), -rows))
    return [k for k, rows in enumerate(recording.rows) if rows == nearest]


def _percentile(seconds: list[float], percent: float) -> float | None:
    """In milliseconds; None when nothing was answered."""
    return round(float(np.percentile(seconds, percent)) * 1000, 2) if seconds else None


def _milliseconds(value: float | None) -> str:
    return "not known" if value is None else f"{value:.1f} ms"


def _table(measured: Measured, posted: list[LoadPicture]) -> Table:
    summary = measured.as_json()
    title = f"{len(posted)} pictures, {summary['crops_per_picture']} people posed in each, {measured.clients} clients"
    table = Table("", "service", "networks alone", title=title)
    table.add_row("pictures/s", f"{summary['service_per_second']:.2f}", f"{summary['bound_per_second']:.2f}")
    spread = f"{min(measured.ratios):.3f} to {max(measured.ratios):.3f}" if measured.ratios else ""
    table.add_row("ratio, median of the rounds", f"[bold]{measured.ratio:.3f}[/bold]", spread)
    for percent in (50, 95, 99):
        table.add_row(f"latency p{percent}, {measured.clients} clients", _milliseconds(measured.latency_ms(percent)))
    one = f"latency p50, 1 client, {measured.single_people} people"
    table.add_row(one, _milliseconds(summary["single_p50_ms"]))
    table.add_row("CPU time for a picture", *(_milliseconds(summary[k]) for k in ("service_cpu_ms", "bound_cpu_ms")))
    memory = "not known" if measured.resident_mb is None else f"{measured.resident_mb:.0f} MB"
    table.add_row("resident memory", memory)
    if measured.recall.known:
        table.add_row("drawn people found", str(measured.recall))
    table.add_row("answers checked, wrong", f"{summary['answers']}, {summary['wrong']}")
    return table


if __name__ == "__main__":
    typer.run(main)
