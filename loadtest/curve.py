"""Throughput and latency at each load of a test, and the curve that they make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

# The first part of each step is left out: users begin, queues fill.
_SETTLING = 0.2
# Refused is one that may be: by an open loop, which offers what it offers.
Fate = Literal["right", "refused", "wrong"]
# Second since the start at which a request was begun or due, milliseconds to its answer, and what became of it.
Row = tuple[float, float, Fate]


@dataclass(frozen=True)
class Point:
    """One load.

    Attributes:
        name: for the table and the plot.
        load: users, or requests a second, as the scenario counts.
        rate: right answers a second.
        p50, p95, p99: latency of these in milliseconds; None where there were none.
        failed: requests that got a wrong answer or none.
        refused: requests of an open loop that were told to come back.
    """

    name: str
    load: float
    rate: float
    p50: float | None
    p95: float | None
    p99: float | None
    failed: int
    refused: int = 0

    def as_json(self) -> dict[str, object]:
        """For the last line."""
        return asdict(self)


def point(name: str, load: float, rows: Sequence[Row], start: float, seconds: float) -> Point:
    """What was answered between ``start`` and ``start + seconds``, less the settling."""
    begin, end = start + _SETTLING * seconds, start + seconds
    inside = [row for row in rows if begin <= row[0] + row[1] / 1000 < end]
    right = [milliseconds for _, milliseconds, fate in inside if fate == "right"]
    fates = Counter(fate for _, _, fate in inside)
    p50, p95, p99 = (round(float(np.percentile(right, q)), 1) if right else None for q in (50, 95, 99))
    rate = round(len(right) / (end - begin), 3)
    return Point(name, load, rate, p50, p95, p99, failed=fates["wrong"], refused=fates["refused"])


def steps(rows: Sequence[Row], users: Sequence[int], seconds: float) -> list[Point]:
    """One point for each step of :mod:`loadtest.scenarios.steps`."""
    return [point(f"{n} users", n, rows, place * seconds, seconds) for place, n in enumerate(users)]


def plot(closed: Sequence[Point], arrivals: Sequence[Point], paths: Sequence[Path]) -> None:
    """Latency over throughput; the kind of file is the suffix's (.png, .svg)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for name, style in (("p50", "-"), ("p95", "--"), ("p99", ":")):
        line = [(one.rate, getattr(one, name)) for one in closed if getattr(one, name) is not None]
        if line:
            axes.plot(*zip(*line, strict=True), style, marker="o", color="tab:blue", label=f"closed loop, {name}")
        open_line = [(one.rate, getattr(one, name)) for one in arrivals if getattr(one, name) is not None]
        if open_line:
            pairs = zip(*open_line, strict=True)
            axes.plot(*pairs, style, marker="s", color="tab:orange", label=f"Poisson arrivals, {name}")
    for one in closed:
        if one.p50 is not None:
            axes.annotate(f"{one.load:g}", (one.rate, one.p50), textcoords="offset points", xytext=(4, -10), fontsize=8)
    axes.set(xlabel="right answers a second", ylabel="latency, ms", yscale="log", title="Latency over throughput")
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    plt.close(figure)
