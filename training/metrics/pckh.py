"""PCKh@0.5, MPII's measure: a joint is right within half the length of the person's head.

The head's length is 0.6 of the head box's diagonal (evalMPII's bias); the reader has it. The mean leaves out pelvis
and thorax and counts every labelled joint alike, as MPII's evaluation and HRNet's do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.datasets.coco import PersonRecord
from training.metrics.coco import JoinedJoints
from training.metrics.pck import Integers, Pair, Pck, count_right

THRESHOLD = 0.5
_NOT_IN_MEAN = ("pelvis", "thorax")


@dataclass(frozen=True)
class Pckh:
    """Counts of joints; ``counts.people`` are those whose head's length is known."""

    counts: Pck

    name = "pckh"

    def mean(self, times: Integers | None = None) -> float:
        """Share of right joints; NaN when none is labelled. ``times`` repeats pictures."""
        used = [k for k, joint in enumerate(self.counts.joints) if joint not in _NOT_IN_MEAN]
        repeated = np.ones(len(self.counts.right), np.intp) if times is None else times
        labelled = int((repeated @ self.counts.labelled)[used].sum())
        return float((repeated @ self.counts.right)[used].sum()) / labelled if labelled else float("nan")

    def summary(self, resamples: int, rng: np.random.Generator) -> dict[str, Any]:
        """As it goes into the report."""
        used = np.flatnonzero(self.counts.labelled.sum(1))
        drawn = [
            self.mean(np.bincount(used[rng.integers(0, len(used), len(used))], minlength=len(self.counts.right)))
            for _ in range(resamples if len(used) > 1 else 0)
        ]
        rates = dict(zip(self.counts.joints, self.counts.rates().tolist(), strict=True))
        return {
            "threshold": THRESHOLD,
            "mean": self.mean(),
            "spread": float(np.std(drawn, ddof=1)) if len(drawn) > 1 else None,
            "people": self.counts.people,
            "missed": self.counts.missed,
            "joints": {joint: rate for joint, rate in rates.items() if not np.isnan(rate)},
        }


def count_within_heads(
    pairs: Sequence[Pair], pictures: int, joints: JoinedJoints, threshold: float = THRESHOLD
) -> Pckh | None:
    """Count right joints of labelled people and their answers; None when no head's length is known."""

    def limit(person: PersonRecord) -> float | None:
        return threshold * person.head if person.head else None

    counts = count_right(pairs, pictures, joints, limit)
    return Pckh(counts) if counts else None
