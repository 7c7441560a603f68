"""Object keypoint similarity (OKS), COCO's overlap measure between two poses.

``OKS = mean_k exp(-d_k^2 / (2 * area * (2 * sigma_k)^2))``, as in cocoapi's ``computeOks``. Between a prediction
and a label the area is the label's; between two predictions (OKS-NMS) it is the mean of both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# A person covers about this part of the bounding box (median of COCO's outlines; CrowdPose and AI Challenger
# evaluation use the same number). OKS needs the person's area, and a prediction only has a box.
AREA_OF_BOX = 0.53


def pairwise_oks(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    areas: npt.ArrayLike,
    sigmas: Sequence[float],
    visible: npt.ArrayLike | None = None,
) -> Array:
    """OKS of each pose of ``first`` with each of ``second``.

    Args:
        first: [A, K, 2] joints in pixels.
        second: [B, K, 2] joints in pixels.
        areas: person area in square pixels for each pair; broadcast to [A, B].
        sigmas: K standard deviations of the skeleton.
        visible: [A, K] bool, the joints of ``first`` that count; None for all. A pose without any gets 0.

    Returns:
        float64 [A, B] in 0..1.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    apart = a[:, None] - b[None]
    squared = apart[..., 0] ** 2 + apart[..., 1] ** 2
    variances = (2.0 * np.asarray(sigmas, np.float64)) ** 2
    # np.spacing(1) as in cocoapi: a person of no area then has similarity 0 or 1, not NaN.
    spread = np.asarray(areas, np.float64)[..., None] + np.spacing(1.0)
    terms = np.exp(-squared / (2.0 * spread * variances))
    if visible is None:
        return np.asarray(np.add.reduce(terms, -1) / terms.shape[-1])
    counted = np.asarray(visible, bool)[:, None, :]
    return np.asarray((terms * counted).sum(-1) / np.maximum(counted.sum(-1), 1))


def prediction_oks(keypoints: npt.ArrayLike, boxes: npt.ArrayLike, sigmas: Sequence[float]) -> Array:
    """OKS between all predictions of one picture, for OKS-NMS.

    Args:
        keypoints: [P, K, 2 or more], the first two are x, y in pixels.
        boxes: [P, 4] x1 y1 x2 y2; a pair's area is the mean of both boxes' areas times 0.53.
        sigmas: K standard deviations of the skeleton.

    Returns:
        float64 [P, P], symmetric, 1 on the diagonal.
    """
    points = np.asarray(keypoints, np.float64)[..., :2]
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    own = AREA_OF_BOX * (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    return pairwise_oks(points, points, (own[:, None] + own[None]) / 2, sigmas)
