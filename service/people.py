"""What the pipeline answers: the people of one picture, as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class People:
    """P people of one picture, best first (in the caller's order when the caller gave the boxes).

    Attributes:
        boxes: [P, 4] x1 y1 x2 y2 in image edge coordinates.
        box_scores: [P] detector scores, 1 for given boxes.
        keypoints: [P, K, 3] x, y in image pixels (points) and joint score in 0..1.
        scores: [P] person scores.
    """

    boxes: Array
    box_scores: Array
    keypoints: Array
    scores: Array

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, indices: npt.NDArray[np.intp]) -> People:
        """The people at these indices, in this order."""
        return People(self.boxes[indices], self.box_scores[indices], self.keypoints[indices], self.scores[indices])

    @classmethod
    def nobody(cls, joints: int) -> People:
        """An empty answer for a skeleton of that many joints."""
        return cls(np.zeros((0, 4)), np.zeros(0), np.zeros((0, joints, 3)), np.zeros(0))


@dataclass(frozen=True)
class PosedPicture:
    """One answered picture.

    Attributes:
        id: image_id in the answer.
        width, height: size of the upright picture.
        people: who is in it.
        pixels: uint8 [H, W, 3] RGB where the caller wants to draw; else None, so that they can be freed.
    """

    id: int
    width: int
    height: int
    people: People
    pixels: npt.NDArray[np.uint8] | None = None


def keypoints_in_image(keypoints: npt.ArrayLike, matrices: Array) -> Array:
    """Joints of crops to joints of the picture.

    Args:
        keypoints: [P, K, 3] x, y in crop pixels and score.
        matrices: [P, 2, 3] affines that took image points to crop points.

    Returns:
        float64 [P, K, 3] x, y in image pixels and score.
    """
    answered = np.array(keypoints, np.float64)
    # Two by two: written out it takes a third of the time that the general inverse takes.
    (a, b, tx), (c, d, ty) = np.asarray(matrices, np.float64).transpose(1, 2, 0)[..., None]
    x, y, determinant = answered[..., 0] - tx, answered[..., 1] - ty, a * d - b * c
    answered[..., 0] = (d * x - b * y) / determinant
    answered[..., 1] = (a * y - c * x) / determinant
    return answered
