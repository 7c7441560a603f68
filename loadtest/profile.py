"""``python -m loadtest.profile``: processor time of a picture in the service, by thread and by stage.

On a machine that is busy with other work the clock says little; what a picture costs in processor time hardly changes.
Pictures are posted one after the other, and the threads' clocks are read from ``/proc`` before and after: the event
loop, the threads for pixels, those that run networks, gRPC. Linux only. The last line is one JSON object.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from deploy.triton.installation import ROOT
from deploy.triton.server import TritonServer
from loadtest.pictures import LoadPicture, folder_pictures, rendered_pictures
from loadtest.server import ServiceProcess

# Kinds of threads by the names that the system shows; the main thread is the event loop's.
_KINDS = (("pixels", "pixels"), ("inference", "networks"), ("event_engine", "gRPC"), ("grpc", "gRPC"))
_OTHERS = "networks' helpers, others"
Clocks = dict[int, tuple[str, float]]


def thread_clocks(pid: int) -> Clocks:
    """Kind and processor seconds of each thread of a process, by thread id."""
    clocks = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # ended meanwhile
            name = (task / "comm").read_text().strip()
            nanoseconds = int((task / "schedstat").read_text().split()[0])
            kind = next((kind for part, kind in _KINDS if part in name), _OTHERS)
            clocks[int(task.name)] = ("event loop" if int(task.name) == pid else kind, nanoseconds / 1e9)
    return clocks


def spent(before: Clocks, after: Clocks, pictures: int) -> dict[str, float]:
    """Milliseconds a picture by kind of thread; threads that ended in between are left out."""
    kinds = dict.fromkeys(["event loop", *(kind for _, kind in _KINDS), _OTHERS], 0.0)
    for thread, (kind, seconds) in after.items():
        kinds[kind] += (seconds - before.get(thread, (kind, 0.0))[1]) * 1e3 / pictures
    return {kind: round(ms, 3) for kind, ms in kinds.items()}


def page_faults(pid: int) -> int:
    """Pages that a process has been given by the system so far."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])


class _Poster:
    """One client that keeps its connection."""

    def __init__(self, url: str, pictures: Sequence[LoadPicture], query: str) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=60)
        self._pictures, self._path = pictures, f"/v1/pose?{query}"
        self.stages: dict[str, list[float]] = {}

    def post(self, count: int) -> None:
        """Post pictures in turn; raises RuntimeError for any answer but 200."""
        for number in range(count):
            picture = self._pictures[number % len(self._pictures)]
            self._connection.request("POST", self._path, picture.data, {"Content-Type": picture.media_type})
            response = self._connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise RuntimeError(f"{picture.name}: HTTP {response.status}: {body[:200]!r}")
            for stage, value in re.findall(r"([\w.-]+);dur=([\d.]+)", response.headers.get("Server-Timing", "")):
                self.stages.setdefault(stage, []).append(float(value))


@contextlib.contextmanager
def _service(triton: bool) -> Iterator[ServiceProcess]:
    with contextlib.ExitStack() as stack:
        settings = {"TRITONPOSE_RELOAD_SECONDS": "0"}
        if triton:
            server = stack.enter_context(TritonServer(ROOT / "model_repository"))
            settings |= {"TRITONPOSE_ENGINE": "triton", "TRITONPOSE_TRITON_URL": server.grpc_url}
        yield stack.enter_context(ServiceProcess(settings, start_seconds=300))


def main(
    triton: Annotated[bool, typer.Option(help="On NVIDIA Triton, which is started too; else embedded.")] = False,
    requests: Annotated[int, typer.Option(min=1, help="Pictures of each round.")] = 100,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the table has their medians.")] = 5,
    pictures: Annotated[int, typer.Option(min=1, help="How many pictures take turns.")] = 12,
    people: Annotated[int, typer.Option(min=0, help="People in a rendered picture; as many are posed at most.")] = 3,
    size: Annotated[tuple[int, int], typer.Option(help="Width and height of the rendered JPEGs.")] = (640, 480),
    folder: Annotated[Path | None, typer.Option(help="Pictures to post instead of rendered ones.")] = None,
) -> None:
    """Measure where the service's processor time goes."""
    posted = folder_pictures(folder, pictures) if folder else rendered_pictures(pictures, people, size=size)
    with _service(triton) as service:
        poster = _Poster(service.url, posted, f"max_people={max(1, people)}")
        poster.post(30)
        poster.stages.clear()
        measured, faults, seconds = [], [], []
        for _ in range(rounds):
            clocks, pages, started = thread_clocks(service.pid), page_faults(service.pid), time.perf_counter()
            poster.post(requests)
            seconds.append((time.perf_counter() - started) / requests)
            measured.append(spent(clocks, thread_clocks(service.pid), requests))
            faults.append((page_faults(service.pid) - pages) / requests)
    threads = {kind: round(float(np.median([one[kind] for one in measured])), 3) for kind in measured[0]}
    stages = {stage: round(float(np.median(values)), 3) for stage, values in poster.stages.items()}
    console = Console()
    console.print(_table(f"{requests * rounds} pictures, one at a time: processor time", "thread", threads))
    console.print(_table("stages of a request, median, by the clock", "stage", stages))
    summary = {
        "threads_ms": threads,
        "stages_ms": stages,
        "page_faults": round(float(np.median(faults)), 1),
        "wall_ms": round(float(np.median(seconds)) * 1e3, 2),
        "requests": requests * rounds,
    }
    print(json.dumps(summary))


def _table(title: str, head: str, rows: dict[str, float]) -> Table:
    table = Table(head, "ms for a picture", title=title)
    for name, value in rows.items():
        table.add_row(name, f"{value:.2f}")
    return table


if __name__ == "__main__":
    typer.run(main)
