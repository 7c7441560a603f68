"""Do joint scores say how often a joint is right? The reliability curve and the expected calibration error.

A labelled joint of a found person is right when its keypoint similarity (the term of OKS) is 0.5 or more. Scores fall
into ten bins of equal width; the error is the mean distance between a bin's mean score and its share of right joints,
weighted by its joints (Guo et al. 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.metrics.coco import JoinedJoints
from training.metrics.joint_errors import similarities
from training.metrics.pck import Pair

_BINS = 10
_RIGHT = 0.5

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Reliability:
    """One data set's curve, a value for each bin of scores that holds joints.

    Attributes:
        scores: mean score.
        shares: part of right joints.
        counts: how many joints.
    """

    scores: Array
    shares: Array
    counts: npt.NDArray[np.intp]

    @property
    def error(self) -> float:
        """Expected calibration error, 0..1."""
        return float(np.average(np.abs(self.scores - self.shares), weights=self.counts))


def reliability(pairs: Sequence[Pair], joints: JoinedJoints) -> Reliability | None:
    """The curve of all labelled joints of found people; None when there are none."""
    found = [pair for pair in pairs if pair.keypoints is not None]
    scores, right = [np.zeros(0)], [np.zeros(0, bool)]
    for pair in found:
        assert pair.keypoints is not None
        labelled = pair.person.keypoints[list(joints.in_truth), 2] > 0
        near = np.diagonal(similarities(pair.keypoints, pair, joints)) >= _RIGHT
        scores.append(pair.keypoints[list(joints.in_answer), 2][labelled])
        right.append(near[labelled])
    score, hit = np.concatenate(scores), np.concatenate(right)
    if not len(score):
        return None
    bins = np.clip((score * _BINS).astype(np.intp), 0, _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS)
    used = np.flatnonzero(counts)
    sums = [np.bincount(bins, weights=values, minlength=_BINS)[used] for values in (score, hit)]
    return Reliability(sums[0] / counts[used], sums[1] / counts[used], counts[used])


def draw_reliability(curves: dict[str, Reliability], path: Path) -> Path:
    """Write a PNG: share of right joints over score for each data set, and how the scores are distributed below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5.6), dpi=110, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="#9aa5b1", linewidth=1, linestyle="--")
    width = 0.8 / _BINS / len(curves)
    for place, (name, curve) in enumerate(curves.items()):
        (line,) = upper.plot(curve.scores, curve.shares, "o-", label=f"{name}, error {100 * curve.error:.1f} %")
        starts = np.floor(curve.scores * _BINS) / _BINS
        shares = curve.counts / curve.counts.sum()
        lower.bar(starts + (place + 0.6) * width, shares, width, color=line.get_color())
    upper.set_ylabel("share of right joints (similarity 0.5 or more)")
    upper.set_ylim(0, 1)
    upper.legend(frameon=False, fontsize=8)
    lower.set_ylabel("share of joints")
    lower.set_xlabel("joint score")
    lower.set_xlim(0, 1)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
