"""PCK: the share of labelled joints that the answer places within a part of the person's torso.

PCK@0.2 of LSP: a joint is right when it lies within 0.2 of the distance from the left shoulder to the right hip
(Yang and Ramanan's measure as used on LSP). A joint of a person who was not found is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.oks import pairwise_oks
from service.people import People
from service.skeletons import Skeleton
from service.suppression import iou_matrix
from training.datasets.coco import ImageRecord, PersonRecord
from training.metrics.coco import JoinedJoints

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.intp]

THRESHOLD = 0.2
_TORSO = ("left_shoulder", "right_hip")


@dataclass(frozen=True)
class Pair:
    """A labelled person and the answer's joints for them.

    Attributes:
        picture: index of the picture.
        person: the label.
        keypoints: float64 [K, 3] in the model's joints; None when nobody was found there.
    """

    picture: int
    person: PersonRecord
    keypoints: Array | None


def labelled_people(image: ImageRecord) -> list[PersonRecord]:
    """The people of a picture who have labelled joints."""
    return [person for person in image.people if person.labelled and not person.crowd]


def pair_in_order(picture: int, image: ImageRecord, people: People) -> list[Pair]:
    """Pairs where the boxes of :func:`labelled_people` were given: the answer keeps their order."""
    labelled = labelled_people(image)
    return [Pair(picture, person, joints) for person, joints in zip(labelled, people.keypoints, strict=True)]


def pair_by_overlap(picture: int, image: ImageRecord, people: People, box_threshold: float) -> list[Pair]:
    """Pairs where the service found the people: by box IoU, the largest first, each answer used once.

    Args:
        picture: its index.
        image: the truth.
        people: the answer.
        box_threshold: answered people with a lower box score are not looked at. It should be the one served by
            default: with a lower one, the truth would choose among boxes that nobody gets to see.
    """
    labelled = labelled_people(image)
    seen = np.flatnonzero(people.box_scores >= box_threshold)
    overlaps = iou_matrix(np.array([person.box for person in labelled]).reshape(-1, 4), people.boxes[seen])
    partners: dict[int, Array] = {}
    while overlaps.size and overlaps.max() > 0:
        row, column = np.unravel_index(overlaps.argmax(), overlaps.shape)
        partners[int(row)] = people.keypoints[seen[column]]
        overlaps[row, :] = overlaps[:, column] = 0
    return [Pair(picture, person, partners.get(k)) for k, person in enumerate(labelled)]


def similarity(pair: Pair, joints: JoinedJoints) -> float:
    """OKS of a pair, 0 for a person who was not found."""
    if pair.keypoints is None:
        return 0.0
    truth = pair.person.keypoints[list(joints.in_truth)]
    answer = pair.keypoints[list(joints.in_answer)]
    oks = pairwise_oks(truth[None, :, :2], answer[None, :, :2], pair.person.area, joints.sigmas, truth[None, :, 2] > 0)
    return float(oks[0, 0])


@dataclass(frozen=True)
class Pck:
    """Counts of joints, for each of I pictures.

    Attributes:
        joints: names of the K joints.
        right: int [I, K] joints placed well enough.
        labelled: int [I, K] joints to be placed.
        people: how many people count: those whose measure (for PCK shoulder and hip) is labelled.
        missed: how many of them were not found.
    """

    joints: tuple[str, ...]
    right: Integers
    labelled: Integers
    people: int
    missed: int

    def rates(self, counts: Integers | None = None) -> Array:
        """Share of right joints, float64 [K]; NaN for a joint that is never labelled. ``counts`` repeats pictures."""
        times = np.ones(len(self.right), np.intp) if counts is None else counts
        labelled = times @ self.labelled
        return np.divide(times @ self.right, labelled, out=np.full(len(labelled), np.nan), where=labelled > 0)

    def mean(self, counts: Integers | None = None) -> float:
        """Mean over the joints that are labelled at all."""
        rates = self.rates(counts)
        return float(rates[~np.isnan(rates)].mean())

    def spread(self, resamples: int, rng: np.random.Generator) -> float | None:
        """Standard deviation of the mean over data sets drawn anew from these pictures; None with too few."""
        used = np.flatnonzero(self.labelled.sum(1))
        if len(used) < 2 or resamples < 2:
            return None
        drawn = [
            self.mean(np.bincount(used[rng.integers(0, len(used), len(used))], minlength=len(self.right)))
            for _ in range(resamples)
        ]
        return float(np.std(drawn, ddof=1))

    def summary(self, resamples: int, rng: np.random.Generator) -> dict[str, Any]:
        """As it goes into the report."""
        rates: Mapping[str, float] = dict(zip(self.joints, self.rates().tolist(), strict=True))
        return {
            "threshold": THRESHOLD,
            "mean": self.mean(),
            "spread": self.spread(resamples, rng),
            "people": self.people,
            "missed": self.missed,
            "joints": {joint: rate for joint, rate in rates.items() if not np.isnan(rate)},
        }


def count_correct(
    pairs: Sequence[Pair], pictures: int, truth: Skeleton, joints: JoinedJoints, threshold: float = THRESHOLD
) -> Pck | None:
    """Count right joints.

    Args:
        pairs: labelled people with their answers.
        pictures: number of pictures I.
        truth: the data set's skeleton.
        joints: how it is joined with the model's.
        threshold: largest distance, as a part of the torso's diagonal.

    Returns:
        None when no person has the torso's two joints labelled.
    """
    if not set(_TORSO) <= set(truth.joints):
        return None
    shoulder, hip = (truth.joints.index(joint) for joint in _TORSO)

    def limit(person: PersonRecord) -> float | None:
        labels = person.keypoints
        torso = float(np.linalg.norm(labels[shoulder, :2] - labels[hip, :2]))
        known = labels[shoulder, 2] > 0 and labels[hip, 2] > 0 and torso > 0
        return threshold * torso if known else None

    return count_right(pairs, pictures, joints, limit)


def count_right(
    pairs: Sequence[Pair], pictures: int, joints: JoinedJoints, limit: Callable[[PersonRecord], float | None]
) -> Pck | None:
    """Count joints whose distance is at most ``limit(person)`` pixels; people without a limit do not count.

    Returns:
        None when nobody counts.
    """
    right = np.zeros((pictures, len(joints.names)), np.intp)
    labelled = np.zeros_like(right)
    people = missed = 0
    for pair in pairs:
        longest = limit(pair.person)
        if longest is None:
            continue
        people += 1
        wanted = pair.person.keypoints[list(joints.in_truth)]
        labelled[pair.picture] += wanted[:, 2] > 0
        if pair.keypoints is None:
            missed += 1
            continue
        distances = np.linalg.norm(wanted[:, :2] - pair.keypoints[list(joints.in_answer), :2], axis=1)
        right[pair.picture] += (wanted[:, 2] > 0) & (distances <= longest)
    return Pck(joints.names, right, labelled, people, missed) if labelled.any() else None
