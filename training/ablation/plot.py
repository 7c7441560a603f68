"""The ablation's picture: every row's AP and PCK with their spread over the seeds, grouped by question."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.ablation.ablation import Ablation
from training.ablation.report import keypoint_figure, mean_and_spread, pck_rate

_ROW_INCHES = 0.26
_FIRST, _OTHER = "#9aa5b1", "#1f6f8b"


def draw(ablation: Ablation, path: Path) -> None:
    """Write a PNG: AP and, beside it, PCK; a line for each row.

    A dot is the mean, its bar one standard deviation, small marks are the seeds. The first row of each question,
    which the others are compared with, is grey and carries a line to the others.
    """
    questions = ablation.recipe.comparisons
    lines = sum(len(question.rows) + 1 for question in questions)
    figure = Figure(figsize=(10.5, 1.2 + _ROW_INCHES * lines), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    height, labels, places = 0.0, [], []
    for question in questions:
        height -= 0.6
        left.text(
            0.0, height - 0.25, question.question, transform=left.get_yaxis_transform(), fontsize=7, weight="bold"
        )
        starts: dict[Axes, float] = {}
        for row in question.rows:
            height -= 1.0
            labels.append(row.label)
            places.append(height)
            found = [figures for seed in ablation.recipe.seeds if (figures := ablation.figures(row, seed))]
            for axes, figure_of in ((left, _precision), (right, pck_rate)):
                _mark(axes, height, [100 * figure_of(figures) for figures in found], starts)
    left.set_yticks(places, labels, fontsize=7)
    left.set_ylim(height - 1, 0.5)
    left.set_xlabel("keypoint AP on coco_val, percent", fontsize=8)
    right.set_xlabel("PCK@0.2 on coco_val, percent", fontsize=8)
    for axes in (left, right):
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(axis="x", alpha=0.3)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.savefig(path)


def _mark(axes: Axes, height: float, values: list[float], starts: dict[Axes, float]) -> None:
    """One row in one panel; ``starts`` holds the mean of the question's first row."""
    if not values or any(math.isnan(value) for value in values):
        return
    mean, spread = mean_and_spread(values)
    first = axes not in starts
    colour = _FIRST if first else _OTHER
    axes.plot(values, [height] * len(values), "|", color=colour, markersize=7, alpha=0.6)
    axes.errorbar(mean, height, xerr=spread if len(values) > 1 else None, fmt="o", color=colour, markersize=4)
    axes.plot([starts.setdefault(axes, mean), mean], [height, height], color=_OTHER, linewidth=0.8, alpha=0.5)


def _precision(figures: dict[str, Any]) -> float:
    return keypoint_figure(figures, "AP")
