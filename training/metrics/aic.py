"""AI Challenger 2017's own keypoint score, as its published evaluation computes it; it is not COCO's AP.

- OKS over the *visible* joints only (code 1 there, v = 2 here), with ``delta = 2 sigma`` of its own table (2.4 to 5.9
  times smaller than COCO's) and the box's area plus one: ``mean exp(-d^2 / (2 delta^2 (w h + 1)))``.
- A labelled person's OKS is the best over all answered people; one answer may serve several.
- At each threshold .50, .55, ... .95: people whose OKS is above it, over the sum of ``max(labelled, answered)`` of the
  pictures. There is no ranking by score: every person too many costs, so the box threshold matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.skeletons import AIC14
from training.answers import EvaluationError, PictureAnswer
from training.datasets.coco import ImageRecord
from training.metrics.coco import JoinedJoints

Array = npt.NDArray[np.float64]

AIC_SIGMAS = dict(
    zip(
        AIC14.joints,
        (
            0.01388152, 0.01515228, 0.01057665, 0.01417709, 0.01497891, 0.01402144, 0.03909642, 0.03686941,
            0.01981803, 0.03843971, 0.03412318, 0.02415081, 0.01291456, 0.01236173,
        ),
        strict=True,
    )
)  # fmt: skip
_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_VISIBLE = 2


@dataclass(frozen=True)
class AicScore:
    """What the score is made of, for each of I pictures.

    Attributes:
        hits: int [I, T] people met at each of T thresholds.
        larger: int [I] the larger of labelled and answered people.
        labelled, answered: all people on both sides.
    """

    hits: npt.NDArray[np.intp]
    larger: npt.NDArray[np.intp]
    labelled: int
    answered: int

    name = "aic"

    def rates(self, counts: npt.NDArray[np.intp] | None = None) -> Array:
        """The score at each threshold, float64 [T]; NaN with nobody on either side. ``counts`` repeats pictures."""
        times = np.ones(len(self.larger), np.intp) if counts is None else counts
        people = int(times @ self.larger)
        return (times @ self.hits) / people if people else np.full(len(_THRESHOLDS), np.nan)

    def summary(self, resamples: int, rng: np.random.Generator) -> dict[str, Any]:
        """As it goes into the report; the spread is over pictures drawn anew."""
        rates, pictures = self.rates(), len(self.larger)
        drawn = [
            float(self.rates(np.bincount(rng.integers(0, pictures, pictures), minlength=pictures)).mean())
            for _ in range(resamples if pictures > 1 else 0)
        ]
        usable = [value for value in drawn if not np.isnan(value)]
        return {
            "score": float(rates.mean()),
            "spread": float(np.std(usable, ddof=1)) if len(usable) > 1 else None,
            "at_0.50": float(rates[0]),
            "at_0.75": float(rates[5]),
            "labelled": self.labelled,
            "answered": self.answered,
        }


def aic_score(
    images: Sequence[ImageRecord], answers: Sequence[PictureAnswer], joints: JoinedJoints, box_threshold: float
) -> AicScore | None:
    """Compute the score.

    Args:
        images: the truth, every person labelled; crowds are not part of the data set and are left out.
        answers: one for each picture, in the same order.
        joints: how both are joined; joints that the model lacks do not count (published as mAP-12 without two).
        box_threshold: answered people with a lower box score are not looked at: what is served by default.

    Returns:
        None with no picture.

    Raises:
        EvaluationError: joints that AI Challenger has no sigma for.
    """
    strange = [joint for joint in joints.names if joint not in AIC_SIGMAS]
    if strange:
        raise EvaluationError(
            f"AI Challenger's score knows no {', '.join(strange)}: measure this set with another metric"
        )
    if not images:
        return None
    deltas = 2 * np.array([AIC_SIGMAS[joint] for joint in joints.names])
    hits = np.zeros((len(images), len(_THRESHOLDS)), np.intp)
    larger = np.zeros(len(images), np.intp)
    labelled = answered = 0
    for k, (image, answer) in enumerate(zip(images, answers, strict=True)):
        people = [person for person in image.people if not person.crowd]
        seen = answer.people.box_scores >= box_threshold
        found = answer.people.keypoints[seen][:, list(joints.in_answer), :2]
        for person in people:
            truth = person.keypoints[list(joints.in_truth)]
            best = _best(truth, found, float(np.prod(person.box[2:] - person.box[:2])), deltas)
            hits[k] += best > _THRESHOLDS
        larger[k] = max(len(people), len(found))
        labelled += len(people)
        answered += len(found)
    return AicScore(hits, larger, labelled, answered)


def _best(truth: Array, found: Array, area: float, deltas: Array) -> float:
    """The best OKS of a labelled person [K, 3] over answers [P, K, 2]."""
    visible = truth[:, 2] == _VISIBLE
    if not visible.any() or not len(found):
        return 0.0
    squared = ((found[:, visible] - truth[visible, :2]) ** 2).sum(-1)
    return float(np.exp(-squared / (2 * deltas[visible] ** 2 * (area + 1))).mean(-1).max())
