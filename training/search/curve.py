"""What a search came to, for people: the reward curve as a picture, means for each epsilon, the final comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from training.search.trials import Confirmation, Trial

# Trials over which the drawn mean runs.
_WINDOW = 16


def epsilon_means(trials: Sequence[Trial]) -> list[tuple[float, int, float, float]]:
    """Epsilon, number of trials, mean and best reward, in the order of the search."""
    found = []
    for epsilon, group in groupby(trials, key=lambda trial: trial.epsilon):
        rewards = [trial.reward for trial in group]
        found.append((epsilon, len(rewards), mean(rewards), max(rewards)))
    return found


def summary_lines(trials: Sequence[Trial], confirmed: Sequence[Confirmation]) -> Iterator[str]:
    """Two Markdown tables: rewards for each epsilon, and the best blocks beside the residual one with new seeds."""
    yield "| epsilon | trials | mean reward | best reward |"
    yield "|---|---|---|---|"
    for epsilon, count, average, best in epsilon_means(trials):
        yield f"| {epsilon:.1f} | {count} | {average:.3f} | {best:.3f} |"
    yield ""
    yield "| block | layers | OKS | reward | MMACs | thousand parameters |"
    yield "|---|---|---|---|---|---|"
    for block in confirmed:
        yield (
            f"| {block.name} | {block.words} | {_spread(block.oks)} | {_spread(block.rewards)} "
            f"| {block.macs / 1e6:.1f} | {block.parameters / 1e3:.0f} |"
        )
    trained = [trial for trial in trials if not trial.again]
    seconds = sum(trial.seconds for trial in trained)
    yield f"{len(trained)} of {len(trials)} blocks were trained, in {seconds / 60:.1f} minutes of processor time."


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def draw_curve(path: Path, trials: Sequence[Trial], standard: Sequence[float], title: str) -> None:
    """Reward of every trial, its running mean, epsilon, and the residual block's reward, as PNG."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(7, 3.6), dpi=90, layout="constrained")
    axes = figure.subplots()
    numbers = np.arange(1, len(trials) + 1)
    rewards = np.array([trial.reward for trial in trials])
    axes.plot(numbers, rewards, ".", color="0.65", markersize=4, label="one block")
    running = [rewards[max(0, i - _WINDOW) : i].mean() for i in numbers]
    axes.plot(numbers, running, color="tab:blue", label=f"mean of {_WINDOW}")
    axes.plot(numbers, np.maximum.accumulate(rewards), color="tab:green", label="best so far")
    axes.axhline(mean(standard), color="tab:red", linestyle="--", label="residual block, other seeds")
    axes.set(xlabel="trial", ylabel="reward", title=f"Block search, {title}")
    right = axes.twinx()
    right.step(numbers, [trial.epsilon for trial in trials], color="0.8", where="mid")
    right.set(ylabel="epsilon", ylim=(0, 1.05))
    axes.legend(loc="lower left", fontsize="small")
    figure.savefig(path)
