"""Person scores: how a box score and its joints' scores become the score that people are ranked by.

COCO's AP ranks all people of all pictures by this number, and a detector's score says nothing about the pose.
Rescoring multiplies it by how sure the joints are (Team OKS 2017, slide "Box Candidates Rescoring").
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# HRNet's and mmpose's published variant: the mean of the joints over 0.2 only.
CONFIDENT: Final = "mean_over_0.2"
_CONFIDENT_SCORE = 0.2


def rescore(box_scores: npt.ArrayLike, joint_scores: npt.ArrayLike, method: bool | str = True) -> Array:
    """Score people.

    Args:
        box_scores: [P] detector scores.
        joint_scores: [P, K] joint scores in 0..1.
        method: True for box score x mean of all joint scores; ``"mean_over_0.2"`` for box score x mean of the
            joint scores above 0.2 (0 when there is none); False for the box score alone.

    Returns:
        float64 [P].
    """
    boxes = np.asarray(box_scores, np.float64)
    joints = np.asarray(joint_scores, np.float64)
    if method is False:
        return boxes.copy()
    if method is True:
        return np.asarray(boxes * (np.add.reduce(joints, -1) / joints.shape[-1]))
    if method == CONFIDENT:
        sure = joints > _CONFIDENT_SCORE
        return np.asarray(boxes * (joints * sure).sum(-1) / np.maximum(sure.sum(-1), 1))
    raise ValueError(f"unknown rescoring {method!r}: True, False or {CONFIDENT!r}")
