"""The ablation's picture: every row's AP with its spread over the seeds, grouped by question."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from training.ablation.ablation import Ablation
from training.ablation.report import keypoint_figure, mean_and_spread

_ROW_INCHES = 0.26
_FIRST, _OTHER = "#9aa5b1", "#1f6f8b"


def draw(ablation: Ablation, path: Path) -> None:
    """Write a PNG: one line a row, mean AP as a dot, a bar of one standard deviation, each seed as a small mark.

    The first row of each question, which the others are compared with, is grey and carries a line through the others.
    """
    rows = [
        (comparison.question if place == 0 else "", row, row is comparison.rows[0])
        for comparison in ablation.recipe.comparisons
        for place, row in enumerate(comparison.rows)
    ]
    lines = len(rows) + len(ablation.recipe.comparisons)
    figure = Figure(figsize=(8.5, 1.2 + _ROW_INCHES * lines), dpi=110, layout="constrained")
    axes = figure.subplots()
    height, labels, places, start = 0.0, [], [], None
    for question, row, first in rows:
        height -= 1.6 if question else 1.0
        if question:
            axes.text(0.0, height + 0.75, question, transform=axes.get_yaxis_transform(), fontsize=7, weight="bold")
        found = [figures for seed in ablation.recipe.seeds if (figures := ablation.figures(row, seed))]
        values = [100 * keypoint_figure(figures, "AP") for figures in found]
        labels.append(row.label)
        places.append(height)
        if not values:
            continue
        mean, spread = mean_and_spread(values)
        colour = _FIRST if first else _OTHER
        start = mean if first else start
        axes.plot(values, [height] * len(values), "|", color=colour, markersize=7, alpha=0.6)
        axes.errorbar(mean, height, xerr=spread if len(values) > 1 else None, fmt="o", color=colour, markersize=4)
        if not first and start is not None:
            axes.plot([start, mean], [height, height], color=_OTHER, linewidth=0.8, alpha=0.5)
    axes.set_yticks(places, labels, fontsize=7)
    axes.set_ylim(height - 1, 0.5)
    axes.set_xlabel("keypoint AP on coco_val, percent: mean, one standard deviation, seeds", fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(axis="x", alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path)
