"""``python -m loadtest.outage``: tritonserver is killed (SIGKILL) in the middle of a Locust run, and comes back.

Locust loads the service and holds every answer to the right one. Beside it a probe posts a small picture five times
a second, each over a connection of its own, and notes when it was posted, what came back and when: from these come
the figures. The exit code is 1 when an answer was wrong, was neither 200 nor 503, or came later than the limits.
"""

from __future__ import annotations

import csv
import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode, urlsplit

import typer
from rich.console import Console
from rich.table import Table

from deploy.triton.installation import ROOT
from deploy.triton.server import TritonServer
from loadtest.agreement import disagreement
from loadtest.pictures import LoadPicture, rendered_pictures
from loadtest.server import ServiceProcess

# Seldom enough to leave the cores to Locust: a picture takes 50 ms of two.
_PROBE_SECONDS = 0.2
_PROBES_AT_A_TIME = 32
_OPTIONS = {"max_people": "3"}


@dataclass(frozen=True)
class Probe:
    """One posted picture. Times in seconds of one clock; ``status`` 0 when the connection failed."""

    posted: float
    answered: float
    status: int
    wrong: str | None


@dataclass(frozen=True)
class Outage:
    """What happened around one kill. Times in seconds of the same clock."""

    probes: Sequence[Probe]
    killed: float
    returned: float
    locust: dict[str, int]

    @property
    def statuses(self) -> Counter[int]:
        """Answers to the probe by status."""
        return Counter(probe.status for probe in self.probes)

    @property
    def wrong(self) -> list[str]:
        """Answers of 200 with other people than the right ones."""
        return [probe.wrong for probe in self.probes if probe.wrong]

    @property
    def slowest_refusal(self) -> float:
        """Longest time to a 503: from the post, or from the kill for what was under way then."""
        return max((p.answered - max(p.posted, self.killed) for p in self.probes if p.status == 503), default=0.0)

    @property
    def recovery(self) -> float | None:
        """From Triton's being ready to the first 200 after which no 503 came; None when that never was."""
        last = max((p.posted for p in self.probes if p.status != 200), default=self.killed)
        good = [p.answered for p in self.probes if p.status == 200 and p.posted > last]
        return max(0.0, min(good) - self.returned) if good else None

    def as_json(self) -> dict[str, Any]:
        """The last line of the command."""
        return {
            "probes": len(self.probes),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "wrong": len(self.wrong),
            "away_s": round(self.returned - self.killed, 2),
            "slowest_503_s": round(self.slowest_refusal, 3),
            "recovery_s": None if self.recovery is None else round(self.recovery, 2),
            "locust": self.locust,
        }


class Prober:
    """Posts the same picture again and again from a thread; a context manager."""

    def __init__(self, url: str, picture: LoadPicture) -> None:
        """Posts it once to learn the right answer. Raises RuntimeError when that fails."""
        self._address = urlsplit(url).netloc
        self._picture = picture
        status, body = self._ask()
        if status != 200:
            raise RuntimeError(f"the service answers {status} before anything was killed: {body[:200]!r}")
        self._expected = json.loads(body)
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(_PROBES_AT_A_TIME)
        self._thread = threading.Thread(target=self._run)
        self.probes: list[Probe] = []

    def __enter__(self) -> Prober:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._pool.shutdown()

    def _run(self) -> None:
        while not self._stop.wait(_PROBE_SECONDS):
            self._pool.submit(self._post)

    def _post(self) -> None:
        posted = time.monotonic()
        try:
            status, body = self._ask()
        except (OSError, http.client.HTTPException):
            status, body = 0, b""
        answered = time.monotonic()
        wrong = disagreement(self._expected, json.loads(body)) if status == 200 else None
        self.probes.append(Probe(posted, answered, status, wrong))

    def _ask(self) -> tuple[int, bytes]:
        """Status and body. A library with more comfort takes 30 ms of CPU for a new connection."""
        connection = http.client.HTTPConnection(self._address, timeout=60)
        try:
            headers = {"Content-Type": self._picture.media_type}
            connection.request("POST", f"/v1/pose?{urlencode(_OPTIONS)}", self._picture.data, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


class Locust:
    """The load test of ``make loadtest`` in a process of its own, until it is stopped."""

    def __init__(self, url: str, users: int, folder: Path) -> None:
        """Starts it and returns when it has learnt the right answers and loads. Raises RuntimeError."""
        self._results = folder / "locust"
        command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless", "--only-summary"]
        command += ["--host", url, "--users", str(users), "--spawn-rate", str(users), "--pictures", "6"]
        command += ["--csv", str(self._results), "--stop-timeout", "30"]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.log: list[str] = []
        self._loads = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        if not self._loads.wait(300) or self._process.poll() is not None:
            self.stop()
            raise RuntimeError("Locust does not load:\n" + "".join(self.log[-20:]))

    def stop(self) -> dict[str, int]:
        """End it in order; how many requests it made, and how many of them got 503 or anything else that is no 200."""
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        if self._process.stderr is not None:
            self._process.stderr.close()
        return self._counts()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.log.append(line)
            if "learnt from" in line:
                self._loads.set()
        self._loads.set()

    def _counts(self) -> dict[str, int]:
        counts = {"requests": 0, "refused_503": 0, "other_failures": 0}
        for row in _rows(self._results.with_name("locust_stats.csv")):
            if row["Name"] == "Aggregated":
                counts["requests"] = int(row["Request Count"])
        for row in _rows(self._results.with_name("locust_failures.csv")):
            kind = "refused_503" if "HTTP 503" in row["Error"] else "other_failures"
            counts[kind] += int(row["Occurrences"])
        return counts


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def run_outage(repository: Path, *, users: int, before: float, away: float, after: float) -> Outage:
    """Kill Triton ``before`` seconds into a Locust run, start it again after ``away``, go on for ``after``."""
    picture = rendered_pictures(1, 1, size=(320, 240), seed=3)[0]
    with TritonServer(repository) as triton, tempfile.TemporaryDirectory() as folder:
        settings = {"TRITONPOSE_ENGINE": "triton", "TRITONPOSE_TRITON_URL": triton.grpc_url}
        with ServiceProcess(settings, start_seconds=180) as service:
            prober = Prober(service.url, picture)
            locust = Locust(service.url, users, Path(folder))
            try:
                with prober:
                    time.sleep(before)
                    killed = time.monotonic()
                    triton.kill()
                    time.sleep(away)
                    triton.start()
                    returned = time.monotonic()
                    time.sleep(after)
            finally:
                counts = locust.stop()
    return Outage(prober.probes, killed, returned, counts)


def main(
    repository: Annotated[Path, typer.Option(help="Model repository.")] = ROOT / "model_repository",
    users: Annotated[int, typer.Option(min=1, help="Locust users.")] = 4,
    before: Annotated[float, typer.Option(help="Seconds of load before the kill.")] = 15.0,
    away: Annotated[float, typer.Option(help="Seconds from the kill to the new start.")] = 5.0,
    after: Annotated[float, typer.Option(help="Seconds of load after Triton is ready again.")] = 15.0,
    most_refusal: Annotated[float, typer.Option(help="Longest time to a 503, in seconds.")] = 1.0,
    most_recovery: Annotated[float, typer.Option(help="Longest time from ready to good answers, in seconds.")] = 5.0,
) -> None:
    """Kill Triton under load and measure what callers see."""
    outage = run_outage(repository, users=users, before=before, away=away, after=after)
    summary = outage.as_json()
    table = Table("", "measured", "limit", title=f"tritonserver killed under {users} Locust users, away {away:g} s")
    table.add_row("wrong answers, probe", str(summary["wrong"]), "0")
    table.add_row("answers of the probe by status", json.dumps(summary["statuses"]), "only 200 and 503")
    table.add_row("Locust's requests", str(outage.locust["requests"]))
    table.add_row("of them 503", str(outage.locust["refused_503"]))
    table.add_row("of them wrong or failed otherwise", str(outage.locust["other_failures"]), "0")
    table.add_row("longest time to a 503", f"{summary['slowest_503_s']} s", f"{most_refusal:g} s")
    table.add_row("from Triton's being ready to good answers", f"{summary['recovery_s']} s", f"{most_recovery:g} s")
    Console().print(table)
    print(json.dumps(summary))
    good = not outage.wrong and set(outage.statuses) <= {200, 503} and not outage.locust["other_failures"]
    quick = outage.recovery is not None and outage.recovery <= most_recovery
    if not (good and quick and outage.slowest_refusal <= most_refusal):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
