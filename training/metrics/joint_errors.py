"""What goes wrong with joints: jitter, inversion, swap, miss (Ronchi and Perona, ICCV 2017).

Each labelled joint of a person who was found is put into one class by its keypoint similarity (the term of OKS):

* ``good``: 0.85 or more, as near as people label it;
* ``jitter``: 0.5 to 0.85, the right place, not exactly;
* ``inversion``: less, but 0.5 or more to another joint of the same person: left for right, knee for ankle;
* ``swap``: less, but 0.5 or more to the same joint of somebody else;
* ``miss``: near nothing of these.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from training.metrics.coco import JoinedJoints
from training.metrics.pck import Pair

KINDS = ("good", "jitter", "inversion", "swap", "miss")
_GOOD, _NEAR = 0.85, 0.5

Array = npt.NDArray[np.float64]


def joint_errors(pairs: Sequence[Pair], joints: JoinedJoints) -> dict[str, float] | None:
    """The share of each of :data:`KINDS` among the labelled joints of people who were found; None when there are none.

    Args:
        pairs: every labelled person of the data set with the answer's joints.
        joints: how the skeletons are joined.
    """
    companions: dict[int, list[Pair]] = defaultdict(list)
    for pair in pairs:
        companions[pair.picture].append(pair)
    counts = np.zeros(len(KINDS), np.intp)
    for pair in pairs:
        if pair.keypoints is not None:
            others = [other for other in companions[pair.picture] if other is not pair]
            counts += _count(pair, pair.keypoints, others, joints)
    return dict(zip(KINDS, (counts / counts.sum()).tolist(), strict=True)) if counts.sum() else None


def _count(pair: Pair, keypoints: Array, others: Sequence[Pair], joints: JoinedJoints) -> npt.NDArray[np.intp]:
    labelled = pair.person.keypoints[list(joints.in_truth), 2] > 0
    own = similarities(keypoints, pair, joints)
    right = np.diagonal(own).copy()
    np.fill_diagonal(own, 0.0)
    inverted = own.max(1) >= _NEAR
    swapped = np.zeros(len(labelled), bool)
    for other in others:
        swapped |= np.diagonal(similarities(keypoints, pair, joints, other)) >= _NEAR
    kinds = np.select([right >= _GOOD, right >= _NEAR, inverted, swapped], [0, 1, 2, 3], 4)
    return np.bincount(kinds[labelled], minlength=len(KINDS))


def similarities(keypoints: Array, pair: Pair, joints: JoinedJoints, other: Pair | None = None) -> Array:
    """Keypoint similarity of each answered joint (row) to each labelled joint (column) of a person.

    Args:
        keypoints: [K_model, 3], the answer for ``pair``.
        pair: whose area is the measure.
        joints: how the skeletons are joined.
        other: whose labels; ``pair``'s own when None.

    Returns:
        float64 [K, K] in 0..1, by the labelled joint's tolerance; 0 where it is not labelled.
    """
    truth = (other or pair).person.keypoints[list(joints.in_truth)]
    answer = keypoints[list(joints.in_answer), :2]
    squared = ((answer[:, None] - truth[None, :, :2]) ** 2).sum(-1)
    variances = (2.0 * np.asarray(joints.sigmas)) ** 2
    terms = np.exp(-squared / (2.0 * (pair.person.area + np.spacing(1.0)) * variances))
    return np.asarray(np.where(truth[:, 2] > 0, terms, 0.0))
