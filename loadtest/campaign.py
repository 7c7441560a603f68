"""``make loadtest``: Locust's scenarios one after the other against the service, a report, and a verdict.

    closed     a few users without pauses, pictures of mixed sizes with nobody to six people, mixed options
    steps      more and more users, until the service is saturated and beyond
    arrivals   requests that come by chance at parts of the rate that the steps reached (an open loop)
    rough      of ten callers three send nonsense, one trickles his picture, one hangs up

Every answer is held to the right one. The folder of the report gets Locust's HTML and CSV files for each scenario, and
the curve of latency over throughput as PNG and SVG.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from loadtest.curve import Point, Row, plot, point, steps
from loadtest.server import ROOT, running_service
from loadtest.verdict import Verdict, shown_ms

# Time for Locust to learn the right answers, and to wait for what is in flight at the end.
_MARGIN_SECONDS = 600.0
_SCENARIOS = {
    "closed": "loadtest/locustfile.py",
    "steps": "loadtest/scenarios/steps.py",
    "arrivals": "loadtest/scenarios/open_loop.py",
    "rough": "loadtest/scenarios/rough.py",
}


@dataclass(frozen=True)
class Run:
    """What one run of Locust gave.

    Attributes:
        code: its exit code: 0 when every limit was kept.
        rows: the time and fate of every request.
        last_words: the end of its log.
    """

    code: int
    rows: Sequence[Row]
    last_words: str


class Campaign:
    """Runs scenarios against one service."""

    def __init__(self, url: str, folder: Path, pictures: int, api_key: str | None) -> None:
        self._url, self._folder, self._pictures, self._api_key = url, folder, pictures, api_key

    def run(self, scenario: str, name: str, seconds: float, *options: str) -> Run:
        """Run Locust once, with its report under ``name``. It is done after ``seconds`` and some."""
        report, record = self._folder / name, self._folder / f"{name}_requests.json"
        command = [sys.executable, "-m", "locust", "-f", _SCENARIOS[scenario], "--headless", "--only-summary"]
        command += ["--host", self._url, "--mixed", "--pictures", str(self._pictures), "--record", str(record)]
        command += ["--html", f"{report}.html", "--csv", str(report), "--stop-timeout", "60", *options]
        environment = {**os.environ, **({"TRITONPOSE_API_KEY": self._api_key} if self._api_key else {})}
        record.unlink(missing_ok=True)
        with (self._folder / f"{name}.log").open("w+") as log:
            limit = seconds + _MARGIN_SECONDS
            done = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, timeout=limit, check=False
            )
            log.seek(0)
            words = log.read()[-3000:]
        rows = [tuple(row) for row in json.loads(record.read_text())] if record.is_file() else []
        return Run(done.returncode, rows, words)


def main(
    url: Annotated[str | None, typer.Option(help="Service that runs already; by default one is started.")] = None,
    seconds: Annotated[float, typer.Option(min=2, help="Length of each scenario, and of two steps.")] = 40.0,
    users: Annotated[int, typer.Option(min=1, help="Users of the closed loop.")] = 4,
    stairs: Annotated[str, typer.Option("--steps", help="Users of each step.")] = "1,2,4,8,16,32",
    arrivals: Annotated[
        str, typer.Option(help="Parts of the best step's rate at which requests arrive.")
    ] = "0.3,0.6,0.9",
    scenarios: Annotated[str, typer.Option(help="Which, separated by commas.")] = ",".join(_SCENARIOS),
    pictures: Annotated[int, typer.Option(min=1, help="How many pictures take turns.")] = 12,
    most_p95: Annotated[float, typer.Option(help="Limit: p95 of the closed loop in ms; 0 for none.")] = 0.0,
    most_refused: Annotated[
        float, typer.Option(min=0, max=1, help="Limit: part of the arrivals at a rate that may be told to come back.")
    ] = 0.2,
    least_rate: Annotated[float, typer.Option(help="Limit: right answers/s at the best step; 0 for none.")] = 0.0,
    report: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("runs/loadtest"),
    api_key: Annotated[str | None, typer.Option(envvar="TRITONPOSE_API_KEY", help="Key for --url.")] = None,
    out: Annotated[Path | None, typer.Option(help="File for the JSON of the last line.")] = None,
) -> None:
    """Run the load tests."""
    chosen = scenarios.split(",")
    unknown = set(chosen) - set(_SCENARIOS)
    if unknown:
        there = ", ".join(_SCENARIOS)
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: there are {there}", param_hint="--scenarios")
    if "arrivals" in chosen and "steps" not in chosen:
        raise typer.BadParameter("arrivals need the rate that the steps find", param_hint="--scenarios")
    report = report.resolve()
    report.mkdir(parents=True, exist_ok=True)
    say = Console(stderr=True, highlight=False)
    codes: dict[str, Run] = {}
    closed: list[Point] = []
    opened: list[Point] = []
    others: list[Point] = []
    with running_service(url) as (target, _):
        campaign = Campaign(target, report, pictures, api_key)
        if "closed" in chosen:
            say.print(f"closed: {users} users, {seconds:g} s")
            options = ["--users", str(users), "--spawn-rate", str(users), "--run-time", f"{seconds:g}s"]
            run = codes["closed"] = campaign.run("closed", "closed", seconds, *options, "--max-p95", str(most_p95))
            others.append(point(f"closed, {users} users", users, run.rows, 0.0, seconds))
        if "steps" in chosen:
            counts, each = [int(count) for count in stairs.split(",")], seconds / 2
            say.print(f"steps: {stairs} users, {each:g} s each")
            options = ["--steps", stairs, "--step-seconds", f"{each:g}"]
            run = codes["steps"] = campaign.run("steps", "steps", each * len(counts), *options)
            closed = steps(run.rows, counts, each)
        best = max((one.rate for one in closed), default=0.0)
        for part in [float(part) for part in arrivals.split(",")] if "arrivals" in chosen and best else []:
            say.print(f"arrivals: {part * best:.2f} a second, {seconds:g} s")
            name = f"arrivals_{part:g}"
            options = ["--users", "1", "--rate", f"{part * best:.3f}", "--run-time", f"{seconds:g}s"]
            run = codes[name] = campaign.run("arrivals", name, seconds, *options)
            opened.append(point(f"arrivals, {part:g} of the best", part * best, run.rows, 0.0, seconds))
        if "rough" in chosen:
            say.print(f"rough: 10 users, {seconds:g} s")
            options = ["--users", "10", "--spawn-rate", "10", "--run-time", f"{seconds:g}s"]
            run = codes["rough"] = campaign.run("rough", "rough", seconds, *options)
            others.append(point("rough, all requests", 10, run.rows, 0.0, seconds))
    plot(closed, opened, [report / "curve.png", report / "curve.svg"])
    points = [*others, *closed, *opened]
    _show(points)
    verdict = Verdict(f"{sum(len(run.rows) for run in codes.values())} requests, report in {report}")
    for name, run in codes.items():
        fates = Counter(fate for _, _, fate in run.rows)
        failed, refused = fates["wrong"], fates["refused"]
        verdict.line(f"{name}: wrong or failed of {len(run.rows)}", failed, "0", kept=failed == 0 and bool(run.rows))
        if name.startswith("arrivals"):
            share = refused / max(1, len(run.rows))
            verdict.line(f"{name}: refused", f"{share:.1%}", f"{most_refused:.0%}", kept=share <= most_refused)
        verdict.line(f"{name}: Locust's exit code", run.code, "0", kept=run.code == 0)
    p95 = next((one.p95 for one in others if one.name.startswith("closed")), None)
    if most_p95:
        verdict.line("closed: p95", shown_ms(p95), f"{most_p95:g} ms", kept=p95 is not None and p95 <= most_p95)
    if closed:
        limit = f"{least_rate:g}" if least_rate else ""
        verdict.line("best step, right answers/s", f"{best:.2f}", limit, kept=best >= least_rate)
    examples = [f"{name}: {run.last_words[-400:]}" for name, run in codes.items() if run.code]
    summary = {"points": [one.as_json() for one in points], "codes": {name: run.code for name, run in codes.items()}}
    verdict.end({**summary, "report": str(report)}, examples, out)


def _show(points: Sequence[Point]) -> None:
    columns = ("load", "right answers/s", "p50", "p95", "p99", "failed", "refused")
    table = Table(*columns, title="settled parts of each load")
    for one in points:
        times = (shown_ms(one.p50), shown_ms(one.p95), shown_ms(one.p99))
        table.add_row(one.name, f"{one.rate:.2f}", *times, str(one.failed), str(one.refused))
    Console(width=None if Console().is_terminal else 120).print(table)


if __name__ == "__main__":
    typer.run(main)
