"""``make chaos``: ten thousand requests, a third of them bad, while parts of the service are killed and replaced.

    python -m loadtest.chaos                   two worker processes: one is killed (SIGKILL), later a model is updated
    python -m loadtest.chaos --engine triton   tritonserver is killed, and started again after a while

Callers hang up, send nonsense, trickle their pictures, or wait only for so long. While something is gone a connection
may break and 503 may be answered; at any other time neither may. In the end everything must be well: every answer was
right, no request hung, the service is ready and answers rightly, nothing is left in its queue, and its memory is
bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deploy.triton.server import TritonServer
from loadtest.cases import Case, learn
from loadtest.crowd import Crowd, Manners, Tally
from loadtest.memory import MemoryWatch, tree_mb
from loadtest.pictures import mixed_pictures
from loadtest.server import ROOT, ServiceProcess, child_processes
from loadtest.verdict import Verdict, percentile_ms, shown_ms
from loadtest.wellness import complaints
from loadtest.wire import ConnectionLost, OutOfPatience, Wire, request_bytes
from service.client import PoseClient

# After what was killed is back: what was under way is answered, pauses between retries pass.
_SETTLE_SECONDS = 3.0
_BACK_SECONDS = 180.0


@dataclass
class Happened:
    """What was done to the service, in words, and whether it came back."""

    events: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Trouble:
    """One thing that is done to the service when a part of the requests has been made.

    Attributes:
        share: that part, 0 to 1.
        name: for the table.
        act: does it, in a thread.
        away: whether 503 and broken connections are to be expected until ``back``.
        back: whether it is over; asked again and again, in a thread.
    """

    share: float
    name: str
    act: Callable[[], None]
    away: bool
    back: Callable[[], bool]


def workers_of(pid: int) -> list[int]:
    """Process ids of the workers that a supervisor has spawned."""
    found = []
    for child in child_processes(pid):
        with contextlib.suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


def add_version(repository: Path, model: str) -> int:
    """Give a model a new version, the newest one's copy, as an export would: all at once. The new version."""
    versions = [int(folder.name) for folder in (repository / model).iterdir() if folder.name.isdigit()]
    new = max(versions) + 1
    with tempfile.TemporaryDirectory(dir=repository.parent) as folder:
        copy = Path(folder) / str(new)
        shutil.copytree(repository / model / str(max(versions)), copy)
        copy.rename(repository / model / str(new))
    return new


@contextlib.contextmanager
def embedded(workers: int, update: str) -> Iterator[tuple[ServiceProcess, list[Trouble]]]:
    """The service with workers of its own, over a copy of the shipped models; what is to happen to it."""
    with tempfile.TemporaryDirectory(prefix="tritonpose-chaos-") as folder:
        repository = Path(folder) / "models"
        shutil.copytree(os.environ.get("TRITONPOSE_REPOSITORY", ROOT / "model_repository"), repository)
        settings = {"TRITONPOSE_REPOSITORY": str(repository), "TRITONPOSE_WORKERS": str(workers)}
        with ServiceProcess(settings, start_seconds=180) as service:
            killed: list[int] = []

            def kill() -> None:
                killed.append(workers_of(service.pid)[0])
                os.kill(killed[-1], signal.SIGKILL)

            def replaced() -> bool:
                now = workers_of(service.pid)
                with PoseClient(service.url) as client:
                    return len(now) == workers and not set(killed) & set(now) and client.ready()

            def new_version() -> None:
                add_version(repository, update)

            def taken_over() -> bool:
                newest = max(int(f.name) for f in (repository / update).iterdir() if f.name.isdigit())
                with PoseClient(service.url) as client:
                    return any(m["name"] == update and newest in m["versions"] for m in client.models()["models"])

            troubles = [Trouble(0.5, f"a new version of {update}", new_version, False, taken_over)]
            if workers > 1:
                troubles += [Trouble(share, "a worker is killed", kill, True, replaced) for share in (0.25, 0.75)]
            yield service, troubles


@contextlib.contextmanager
def triton(away: float) -> Iterator[tuple[ServiceProcess, list[Trouble]]]:
    """The service on a tritonserver that is killed and started again."""
    repository = Path(os.environ.get("TRITONPOSE_REPOSITORY", ROOT / "model_repository"))
    with TritonServer(repository) as server:
        settings = {"TRITONPOSE_ENGINE": "triton", "TRITONPOSE_TRITON_URL": server.grpc_url}
        with ServiceProcess(settings, start_seconds=180) as service:

            def kill() -> None:
                server.kill()
                time.sleep(away)
                server.start()

            def back() -> bool:
                with PoseClient(service.url) as client:
                    return client.ready()

            yield service, [Trouble(share, "tritonserver is killed", kill, True, back) for share in (0.3, 0.7)]


async def run(
    url: str, cases: Sequence[Case], requests: int, callers: int, troubles: Sequence[Trouble], seed: int
) -> tuple[Tally, Happened]:
    """The crowd, and beside it the troubles when their time has come; more requests if these take longer."""
    happened = Happened()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("requests", total=requests)
        async with Wire(url) as wire:
            # A quarter of a third of the callers gives up early: on a busy machine more than half of the right ones.
            crowd = Crowd(wire, cases, Manners(wrong=0.33, slow=0.02, gone=0.05, impatient=0.25), seed=seed)

            over = False

            def counted() -> int:
                # While nobody can answer, thousands a second are told so: they would be all there is.
                return crowd.tally.begun - crowd.tally.count("503")

            def goes_on() -> bool:
                progress.update(bar, completed=min(requests, counted()))
                return counted() < requests or not over

            load = asyncio.ensure_future(crowd.run(callers, goes_on))
            try:
                for trouble in sorted(troubles, key=lambda one: one.share):
                    while counted() < trouble.share * requests and not load.done():
                        await asyncio.sleep(0.05)
                    await _make(trouble, crowd, happened)
                over = True
                await load
            finally:
                load.cancel()
            progress.update(bar, completed=requests)
    return crowd.tally, happened


async def _make(trouble: Trouble, crowd: Crowd, happened: Happened) -> None:
    at, began = crowd.tally.begun, time.monotonic()
    crowd.unavailable = trouble.away
    await asyncio.to_thread(trouble.act)
    while not await asyncio.to_thread(trouble.back):
        if time.monotonic() > began + _BACK_SECONDS:
            happened.failed.append(f"{trouble.name}: not over after {_BACK_SECONDS:g} s")
            break
        await asyncio.sleep(0.2)
    over = time.monotonic() - began
    if trouble.away:
        await asyncio.sleep(_SETTLE_SECONDS)
    crowd.unavailable = False
    happened.events.append(f"{trouble.name} after {at} requests, over in {over:.1f} s")


async def alive(url: str) -> bool:
    """Whether the process answers at all."""
    async with Wire(url) as wire:
        try:
            return (await wire.ask(request_bytes("/v1/health/live", method="GET"), patience=10)).status == 200
        except (ConnectionLost, OutOfPatience):
            return False


def main(
    engine: Annotated[str, typer.Option(help="embedded or triton.")] = "embedded",
    requests: Annotated[int, typer.Option(min=20, help="How many requests, 503s not counted.")] = 10_000,
    callers: Annotated[int, typer.Option(min=1, help="Callers, each with one request in flight.")] = 16,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes of the embedded engine; 1 kills none.")] = 2,
    update: Annotated[str, typer.Option(help="Model that gets a new version (embedded).")] = "person_detector",
    away: Annotated[float, typer.Option(help="Seconds for which tritonserver stays dead.")] = 5.0,
    pictures: Annotated[int, typer.Option(min=1, help="How many pictures take turns.")] = 12,
    most_memory: Annotated[float, typer.Option(help="Limit of memory over that before the load, in MB.")] = 400.0,
    seed: Annotated[int, typer.Option(help="The same one draws the same requests.")] = 0,
    out: Annotated[Path | None, typer.Option(help="File for the JSON of the last line.")] = None,
) -> None:
    """Load, kill, update, and look whether all is well."""
    if engine not in ("embedded", "triton"):
        raise typer.BadParameter(f"{engine!r}: embedded or triton", param_hint="--engine")
    posted = mixed_pictures(pictures)
    with embedded(workers, update) if engine == "embedded" else triton(away) as (service, troubles):
        with PoseClient(service.url, retries=5) as client:
            cases = learn(client, posted)
        before = tree_mb(service.pid) or 0.0
        with MemoryWatch(service.pid, every=0.5) as watch:
            tally, happened = uvloop.run(run(service.url, cases, requests, callers, troubles, seed))
            lives = uvloop.run(alive(service.url))
        found = complaints(service.url, cases)
        after = tree_mb(service.pid) or 0.0
        code = service.stop()
    peak = max(watch.mb, default=0.0)
    verdict = Verdict(f"{tally.ended} requests, {callers} callers, {engine} engine")
    for (kind, outcome), number in sorted(tally.outcomes.items()):
        verdict.line(f"{kind}: {outcome}", number)
    for event in happened.events:
        verdict.line("happened", event)
    verdict.line("did not come back", "; ".join(happened.failed) or "none", "none", kept=not happened.failed)
    verdict.line("wrong answers", len(tally.wrong), "0", kept=not tally.wrong)
    verdict.line("hung requests", tally.hanging, "0", kept=tally.hanging == 0)
    verdict.line("alive right after the load", "yes" if lives else "no", "yes", kept=lives)
    verdict.line("well afterwards", "; ".join(found) or "yes", "yes", kept=not found)
    limit = before + most_memory
    verdict.line(
        "memory before, peak, after",
        f"{before:.0f}, {peak:.0f}, {after:.0f} MB",
        f"peak {limit:.0f} MB",
        kept=peak <= limit,
    )
    verdict.line("latency of right answers, p50", shown_ms(percentile_ms(tally.latencies, 50)))
    verdict.line("exit code on SIGTERM", code, "0", kept=code == 0)
    summary: dict[str, Any] = {
        "engine": engine,
        "requests": tally.ended,
        "outcomes": {f"{kind}: {outcome}": number for (kind, outcome), number in sorted(tally.outcomes.items())},
        "events": happened.events,
        "wrong": len(tally.wrong),
        "hung": tally.hanging,
        "complaints": found,
        "memory_mb": [round(before, 1), round(peak, 1), round(after, 1)],
        "exit_code": code,
    }
    verdict.end(summary, [*tally.wrong, *tally.hung], out)


if __name__ == "__main__":
    typer.run(main)
