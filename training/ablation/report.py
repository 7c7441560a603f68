"""The ablation's one table: what each source claims, and what was measured, mean and spread over the seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from training.ablation.ablation import Ablation, Comparison, Row

_COLUMNS = ("row", "AP", "change", "AP50", "PCK@0.2", "change", "seeds")


@dataclass(frozen=True)
class Line:
    """One row as text: its label, and AP, AP50 and PCK with their changes from the first row, seed by seed."""

    label: str
    cells: tuple[str, ...]


def comparison_lines(ablation: Ablation, comparison: Comparison) -> list[Line]:
    """The measured rows of one comparison; rows without any figure say so."""
    first = comparison.rows[0]
    return [_line(ablation, row, first) for row in comparison.rows]


def print_report(ablation: Ablation, screen: Console) -> None:
    """All comparisons as tables."""
    for comparison in ablation.recipe.comparisons:
        table = Table(*_COLUMNS, title=f"{comparison.question}\n{comparison.source}", title_justify="left")
        for line in comparison_lines(ablation, comparison):
            table.add_row(line.label, *line.cells)
        screen.print(table)


def markdown(ablation: Ablation) -> str:
    """The same as Markdown, for the docs."""
    parts = []
    for comparison in ablation.recipe.comparisons:
        lines = [f"## {comparison.question}", "", f"Source: {comparison.source}", ""]
        lines += ["| " + " | ".join(_COLUMNS) + " |", "|" + "---|" * len(_COLUMNS)]
        lines += [
            "| " + " | ".join((line.label, *line.cells)) + " |" for line in comparison_lines(ablation, comparison)
        ]
        if comparison.reading:
            lines += ["", comparison.reading.strip()]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (of a sample; NaN with one value)."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _line(ablation: Ablation, row: Row, first: Row) -> Line:
    seeds = ablation.recipe.seeds
    found = {seed: figures for seed in seeds if (figures := ablation.figures(row, seed))}
    if not found:
        return Line(row.label, ("not measured", *[""] * (len(_COLUMNS) - 3), "0"))
    reference = {} if row is first else {seed: ablation.figures(first, seed) for seed in found}

    def cells(figure: Callable[[dict[str, Any]], float]) -> tuple[str, str]:
        values = {seed: figure(figures) for seed, figures in found.items()}
        changes = [values[seed] - figure(figures) for seed, figures in reference.items() if figures]
        return _percent(list(values.values())), _percent(changes, signed=True)

    precision, precision_change = cells(lambda figures: keypoint_figure(figures, "AP"))
    rate, rate_change = cells(pck_rate)
    half, _ = cells(lambda figures: keypoint_figure(figures, "AP50"))
    return Line(row.label, (precision, precision_change, half, rate, rate_change, str(len(found))))


def keypoint_figure(figures: dict[str, Any], name: str) -> float:
    """A keypoint figure of the first set that has one; NaN when none has."""
    for measured in figures.values():
        if measured["keypoints"]:
            return float(measured["keypoints"][name])
    return math.nan


def pck_rate(figures: dict[str, Any]) -> float:
    """PCK of the last set that has one; NaN when none has."""
    rates = [measured["pck"]["mean"] for measured in figures.values() if measured["pck"]]
    return float(rates[-1]) if rates else math.nan


def _percent(values: Sequence[float], *, signed: bool = False) -> str:
    if not values or any(math.isnan(value) for value in values):
        return ""
    mean, spread = mean_and_spread([value * 100 for value in values])
    text = f"{mean:+.1f}" if signed else f"{mean:.1f}"
    return text if math.isnan(spread) else f"{text} ± {spread:.1f}"
