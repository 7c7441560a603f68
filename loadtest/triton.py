"""``python -m loadtest.triton``: throughput of the gateway on Triton against Triton alone, on the same tensors.

At each concurrency rounds of the two take turns, so that a machine that is busier for a while is busier for both. The
last line is one JSON object.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from deploy.triton.installation import ROOT
from deploy.triton.server import TritonServer
from loadtest.closed_loop import ClosedLoop, Outcome
from loadtest.pictures import folder_pictures, rendered_pictures
from loadtest.server import ServiceProcess, cpu_seconds, process_tree
from loadtest.triton_alone import TritonAlone, record
from service.client import PoseClient


@dataclass
class Measured:
    """Rounds at one concurrency."""

    concurrency: int
    gateway: list[Outcome] = field(default_factory=list)
    triton: list[Outcome] = field(default_factory=list)
    #: CPU seconds of each round, clients left out: of gateway and Triton together, and of Triton alone.
    gateway_cpu: list[float] = field(default_factory=list)
    triton_cpu: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Gateway over Triton in each round in which both completed enough to tell."""
        pairs = zip(self.gateway, self.triton, strict=True)
        return [one.rate / other.rate for one, other in pairs if one.rate > 0 and other.rate > 0]

    @property
    def failures(self) -> list[str]:
        """Every wrong answer, in words."""
        return [failure for one in [*self.gateway, *self.triton] for failure in one.failures]

    def as_json(self) -> dict[str, Any]:
        """One entry of the last line."""
        return {
            "concurrency": self.concurrency,
            "ratio": round(float(np.median(self.ratios)), 4) if self.ratios else 0.0,
            "ratios": [round(ratio, 4) for ratio in self.ratios],
            "cpu_ratio": self.cpu_ratio,
            "gateway": _summary(self.gateway, self.gateway_cpu),
            "triton": _summary(self.triton, self.triton_cpu),
        }

    @property
    def cpu_ratio(self) -> float | None:
        """CPU time for a picture, Triton alone over gateway: the ratio on cores that have nothing else to do.

        On a machine that is busy with other work it says more than the clock. None where /proc does not tell.
        """
        gateway, alone = _cpu_ms(self.gateway, self.gateway_cpu), _cpu_ms(self.triton, self.triton_cpu)
        return round(alone / gateway, 4) if gateway and alone else None


def _cpu_ms(rounds: list[Outcome], cpu: list[float]) -> float | None:
    """For a picture; None where it is not known."""
    posted = sum(one.posted for one in rounds)
    return round(sum(cpu) / posted * 1000, 1) if posted and len(cpu) == len(rounds) else None


def _summary(rounds: list[Outcome], cpu: list[float]) -> dict[str, Any]:
    latencies = [seconds for one in rounds for seconds in one.latencies]
    return {
        "per_second": round(float(np.median([one.rate for one in rounds])), 2),
        "p50_ms": round(float(np.percentile(latencies, 50)) * 1000, 1) if latencies else None,
        "p99_ms": round(float(np.percentile(latencies, 99)) * 1000, 1) if latencies else None,
        "cpu_ms": _cpu_ms(rounds, cpu),
        "answers": sum(one.posted for one in rounds),
    }


def main(
    url: Annotated[str | None, typer.Option(help="Service on Triton that runs already (needs --triton-url).")] = None,
    triton_url: Annotated[str | None, typer.Option(help="host:port of gRPC of a Triton that runs already.")] = None,
    repository: Annotated[Path, typer.Option(help="Model repository of the Triton that is started.")] = ROOT
    / "model_repository",
    concurrency: Annotated[list[int], typer.Option(min=1, help="Requests in flight; give it several times.")] = [  # noqa: B006
        1,
        4,
        16,
    ],
    seconds: Annotated[float, typer.Option(min=0.2, help="Length of a round.")] = 5.0,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each, in turn.")] = 5,
    pictures: Annotated[int, typer.Option(min=1, help="How many pictures take turns.")] = 12,
    people: Annotated[int, typer.Option(min=0, help="People in a rendered picture.")] = 3,
    max_people: Annotated[int, typer.Option(min=1, help="Most people that are posed in each.")] = 3,
    folder: Annotated[Path | None, typer.Option(help="Pictures to post instead of rendered ones.")] = None,
    model: Annotated[str, typer.Option(help="Pose model.")] = "pose",
    shared: Annotated[bool, typer.Option(help="Shared memory for both, where Triton takes it.")] = True,
    least_ratio: Annotated[float, typer.Option(help="Exit with 1 below this ratio at any concurrency.")] = 0.0,
) -> None:
    """Compare the gateway's throughput with that of the Triton it runs on."""
    if url is not None and triton_url is None:
        raise typer.BadParameter("--url needs the --triton-url of the Triton it uses")
    console = Console()
    posted = folder_pictures(folder, pictures) if folder else rendered_pictures(pictures, people)
    options = {"model": model, "max_people": str(max_people)}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress, contextlib.ExitStack() as stack:
        task = progress.add_task("starting Triton", total=2 * rounds * len(concurrency))
        triton = None if triton_url else stack.enter_context(TritonServer(repository))
        address = triton_url or (triton.grpc_url if triton else "")
        progress.update(task, description="starting the service")
        settings = {
            "TRITONPOSE_ENGINE": "triton",
            "TRITONPOSE_TRITON_URL": address,
            "TRITONPOSE_TRITON_SHARED_MEMORY": "auto" if shared else "off",
        }
        service = None if url else stack.enter_context(ServiceProcess(settings))
        target = url or (service.url if service else "")
        service_pid, triton_pid = service.pid if service else None, triton.pid if triton else None
        progress.update(task, description="recording the tensors")
        recording = record(address, [picture.data for picture in posted], options)
        with PoseClient(target) as client:
            expected = [client.pose(picture.data, model=model, max_people=max_people) for picture in posted]
        if [len(answer["annotations"]) for answer in expected] != recording.people:
            raise RuntimeError("the service at --url finds other people than a pipeline over the same Triton")
        alone = stack.enter_context(TritonAlone(address, recording, shared=shared))
        gateway = ClosedLoop(target, posted, expected, options=options)
        measured = [Measured(number) for number in concurrency]
        for _ in range(rounds):
            for one in measured:
                progress.update(task, description=f"gateway, {one.concurrency} at a time", advance=1)
                with _counted(one.gateway_cpu, service_pid, triton_pid):
                    one.gateway.append(gateway.run(one.concurrency, seconds))
                progress.update(task, description=f"Triton, {one.concurrency} at a time", advance=1)
                with _counted(one.triton_cpu, triton_pid):
                    one.triton.append(alone.run(one.concurrency, seconds))
    summary = {
        "pictures": len(posted),
        "crops_per_picture": round(float(np.mean(recording.crops)), 2),
        "shared_memory": alone.shared,
        "runs": [one.as_json() for one in measured],
    }
    console.print(_table(summary))
    failures = [failure for one in measured for failure in one.failures]
    for failure in failures[:5]:
        console.print(f"[red]wrong[/red] {failure}", highlight=False)
    print(json.dumps(summary | {"wrong": len(failures)}))
    if failures or any(not one.ratios or np.median(one.ratios) < least_ratio for one in measured):
        raise typer.Exit(1)


@contextlib.contextmanager
def _counted(rounds: list[float], *pids: int | None) -> Iterator[None]:
    """Append the CPU seconds that these processes and their children use inside; nothing where they are not ours."""
    before = _tree_cpu(pids)
    yield
    after = _tree_cpu(pids)
    if before is not None and after is not None:
        rounds.append(after - before)


def _tree_cpu(pids: Sequence[int | None]) -> float | None:
    total = 0.0
    for pid in pids:
        for one in process_tree(pid) if pid else (None,):
            used = cpu_seconds(one) if one else None
            if used is None:
                return None
            total += used
    return total


def _table(summary: dict[str, Any]) -> Table:
    way = "shared memory" if summary["shared_memory"] else "gRPC"
    title = f"{summary['pictures']} pictures, {summary['crops_per_picture']} crops in each, tensors over {way}"
    table = Table(title=title)
    for heading in (
        "at a time",
        "gateway/s",
        "p50 ms",
        "p99 ms",
        "Triton/s",
        "p50 ms",
        "p99 ms",
        "ratio",
        "rounds",
        "by CPU",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for run in summary["runs"]:
        cells = [str(run["concurrency"])]
        for side in ("gateway", "triton"):
            numbers = run[side]
            cells += [f"{numbers['per_second']:.1f}", str(numbers["p50_ms"]), str(numbers["p99_ms"])]
        spread = f"{min(run['ratios']):.2f} to {max(run['ratios']):.2f}" if run["ratios"] else ""
        by_cpu = "" if run["cpu_ratio"] is None else f"{run['cpu_ratio']:.2f}"
        table.add_row(*cells, f"[bold]{run['ratio']:.2f}[/bold]", spread, by_cpu)
    return table


if __name__ == "__main__":
    typer.run(main)
