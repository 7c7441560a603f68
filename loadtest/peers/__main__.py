"""``python -m loadtest.peers``: the service beside plain FastAPI, LitServe and BentoML on the same models and pictures.

Each server is started in turn, in an environment of its own and with one worker process and with one for each core
(sessions then have their part of the cores), and gets the same closed loop: the same multipart requests from the same
clients. Every answer's people have to be those that the service finds. Rounds go round the servers, so that a machine
that is busier for a while is busier for all; medians over the rounds are printed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import httpx
import numpy as np
import typer
import uvloop
from rich.console import Console
from rich.table import Table

from loadtest.cases import Case, learn
from loadtest.memory import tree_mb
from loadtest.overload import Load
from loadtest.pictures import rendered_pictures
from loadtest.server import ROOT, ServiceProcess, cpu_seconds, free_port, process_tree
from loadtest.verdict import Verdict, percentile_ms
from loadtest.wire import ConnectionLost, OutOfPatience, Wire, request_bytes
from service.client import PoseClient

_START_SECONDS = 180.0
_STOP_SECONDS = 20.0
OURS = "tritonpose"
PEERS = ("FastAPI", "LitServe", "BentoML")


@dataclass
class Served:
    """One server with so many workers, over the rounds.

    ``cpu_ms`` is processor time of all its processes for an answer, and says more than answers a second where several
    are limited by the same networks; ``memory_mb`` is what they have resident together after the round.
    """

    name: str
    workers: int
    rates: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def median(self, values: Sequence[float]) -> float:
        """Over the rounds; 0 of none."""
        return float(np.median(values)) if values else 0.0


def command(name: str, port: int, workers: int) -> list[str]:
    """How a server is started; its environment is made when it is not there."""
    if name == "FastAPI":
        program = [sys.executable, "-m", "uvicorn", "loadtest.peers.fastapi_server:app", "--host", "127.0.0.1"]
        return [*program, "--port", str(port), "--workers", str(workers), "--log-level", "warning", "--no-access-log"]
    group = f"peer-{name.lower()}"
    subprocess.run([sys.executable, str(ROOT / "scripts" / "environment.py"), group], check=True, stdout=sys.stderr)
    python = ROOT / ".venv" / group / "bin" / "python"
    if name == "LitServe":
        return [str(python), "-m", "loadtest.peers.litserve_server", str(port)]
    served = ["serve", "loadtest.peers.bentoml_server:Pose", "--host", "127.0.0.1", "--port", str(port)]
    return [str(python), "-m", "bentoml", *served]


def _wait_for_workers(url: str, workers: int) -> None:
    """The first that is ready opens the port, and would keep all connections that are made before the others are."""
    wanted, end = f'tritonpose_workers{{state="ready"}} {workers}.0', time.monotonic() + _START_SECONDS
    while wanted not in httpx.get(f"{url}/metrics", timeout=30).text:
        if time.monotonic() > end:
            raise RuntimeError(f"not {workers} workers were ready within {_START_SECONDS:g} s")
        time.sleep(0.5)


@contextmanager
def running(name: str, workers: int, cores: int, max_people: int) -> Iterator[tuple[str, int]]:
    """A server in processes of its own: its address, and the id of the first of them.

    Raises RuntimeError with its words when it does not answer.
    """
    if name == OURS:
        with ServiceProcess({"TRITONPOSE_WORKERS": str(workers)}, start_seconds=_START_SECONDS) as service:
            _wait_for_workers(service.url, workers)
            yield service.url, service.pid
        return
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        environment = {
            **os.environ,
            "PEER_WORKERS": str(workers),
            "PEER_THREADS": str(max(1, cores // workers)),
            "PEER_MAX_PEOPLE": str(max_people),
            "BENTOML_HOME": folder,
            "BENTOML_DO_NOT_TRACK": "True",
        }
        process = subprocess.Popen(
            command(name, port, workers),
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # it starts processes of its own: all are ended together
        )
        try:
            yield f"http://127.0.0.1:{port}", process.pid
        except Exception as error:
            log.seek(0)
            raise RuntimeError(f"{name}: {error}\n{log.read()[-4000:]}") from error
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(_STOP_SECONDS)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def as_form(case: Case, path: str) -> bytes:
    """A case as a multipart request, the form that all servers take."""
    head = '--b\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    return request_bytes(path, head.encode() + case.picture.data + b"\r\n--b--\r\n", "multipart/form-data; boundary=b")


async def measure(
    url: str, pid: int, load_cases: Sequence[Case], path: str, clients: int, seconds: float, served: Served
) -> None:
    """Wait until it answers, warm it up, and load it; ``pid`` and its children are the server."""
    requests = [as_form(case, path) for case in load_cases]
    async with Wire(url) as wire:
        end = time.monotonic() + _START_SECONDS
        while True:
            try:
                reply = await wire.ask(requests[0], patience=60)
                if reply.status == 200:
                    break
                last = f"HTTP {reply.status}: {reply.body[:300]!r}"
            except (ConnectionLost, OutOfPatience) as error:
                last = repr(error)
            if time.monotonic() > end:
                raise RuntimeError(f"no answer within {_START_SECONDS:g} s: {last}")
            await asyncio.sleep(0.2)
        load = Load(wire, load_cases, requests)
        await load.closed(clients, min(3.0, seconds))
        processes = process_tree(pid)
        before = {one: cpu_seconds(one) for one in processes}
        rate, answers = await load.closed(clients, seconds)
        spent = [after - was for one, was in before.items() if was is not None and (after := cpu_seconds(one))]
    served.rates.append(rate)
    served.memory_mb.append(tree_mb(pid) or 0.0)
    served.wrong += answers.wrong + [f"HTTP {s}" for s in answers.statuses.elements() if s not in (0, 200)]
    if answers.accepted:
        served.cpu_ms.append(1000 * sum(spent) / len(answers.accepted))
        served.p50_ms.append(percentile_ms(answers.accepted, 50) or 0.0)
        served.p99_ms.append(percentile_ms(answers.accepted, 99) or 0.0)


def main(
    peers: Annotated[str, typer.Option(help="Which, separated by commas.")] = ",".join(PEERS),
    clients: Annotated[int, typer.Option(min=1, help="Clients, each with one request in flight.")] = 8,
    seconds: Annotated[float, typer.Option(min=0.5, help="Length of a round.")] = 15.0,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds round the servers.")] = 3,
    workers: Annotated[str, typer.Option(help="Numbers of worker processes; 0 for one a core.")] = "1,0",
    pictures: Annotated[int, typer.Option(min=1, help="How many pictures take turns.")] = 12,
    people: Annotated[int, typer.Option(min=1, help="People in each; as many are posed at most.")] = 3,
    out: Annotated[Path | None, typer.Option(help="File for the JSON of the last line.")] = None,
) -> None:
    """Measure servers side by side."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    names = [OURS, *(name for name in peers.split(",") if name)]
    unknown = set(names) - {OURS, *PEERS}
    if unknown:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: there are {', '.join(PEERS)}", param_hint="--peers")
    counts = sorted({int(count) or cores for count in workers.split(",")})
    say = Console(stderr=True, highlight=False)
    path = f"/v1/pose?max_people={people}"
    with ServiceProcess(start_seconds=_START_SECONDS) as service, PoseClient(service.url) as client:
        cases = learn(client, rendered_pictures(pictures, people), [{"max_people": str(people)}])
    table = [Served(name, count) for name in names for count in counts]
    for number in range(rounds):
        for served in table:
            with running(served.name, served.workers, cores, people) as (url, pid):
                # The peers have the option in their environment.
                place = path if served.name == OURS else "/v1/pose"
                uvloop.run(measure(url, pid, cases, place, clients, seconds, served))
            say.print(f"round {number + 1}: {served.name}, {served.workers} workers: {served.rates[-1]:.2f} answers/s")
    show(table, names, clients, seconds, out)


def show(table: Sequence[Served], names: Sequence[str], clients: int, seconds: float, out: Path | None) -> None:
    """Print every server, then each at its best beside ours."""
    columns = ("server", "workers", "answers/s", "p50", "p99", "CPU an answer", "memory", "wrong")
    every = Table(*columns, title=f"{clients} clients, {seconds:g} s a round")
    for served in table:
        times = [f"{served.median(one):.0f} ms" for one in (served.p50_ms, served.p99_ms)]
        times.append(f"{served.median(served.cpu_ms):.1f} ms")
        row = [served.name, str(served.workers), f"{served.median(served.rates):.2f}", *times]
        every.add_row(*row, f"{served.median(served.memory_mb):.0f} MB", str(len(served.wrong)))
    Console(width=None if Console().is_terminal else 120).print(every)
    best = {n: max((s for s in table if s.name == n), key=lambda s: s.median(s.rates)) for n in names}
    ours = best[OURS]
    verdict = Verdict("each at its best number of workers")
    rate, p99 = ours.median(ours.rates), ours.median(ours.p99_ms)
    verdict.line(f"{OURS}, {ours.workers} workers", f"{rate:.2f} answers/s, p99 {p99:.0f} ms")
    for name in names[1:]:
        other = best[name]
        theirs, late = other.median(other.rates), other.median(other.p99_ms)
        text = f"{theirs:.2f} answers/s, p99 {late:.0f} ms"
        verdict.line(f"{name}, {other.workers} workers", text, f"below {rate:.2f}", kept=theirs < rate)
    wrong = [f"{served.name}: {reason}" for served in table for reason in served.wrong]
    verdict.line("wrong answers", len(wrong), "0", kept=not wrong)
    rows = [
        {
            "server": served.name,
            "workers": served.workers,
            "per_second": round(served.median(served.rates), 3),
            "rounds": [round(rate, 3) for rate in served.rates],
            "p50_ms": served.median(served.p50_ms),
            "p99_ms": served.median(served.p99_ms),
            "cpu_ms": round(served.median(served.cpu_ms), 2),
            "memory_mb": round(served.median(served.memory_mb), 1),
            "wrong": len(served.wrong),
        }
        for served in table
    ]
    verdict.end({"servers": rows}, wrong, out)


if __name__ == "__main__":
    typer.run(main)
