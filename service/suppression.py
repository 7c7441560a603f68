"""Greedy non-maximum suppression, of boxes by IoU and of poses by OKS.

Both keep the best by score and drop what overlaps it by *more* than the threshold (HRNet, MSPN and
torchvision keep what is equal to it); equal scores keep the earlier one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from service.oks import prediction_oks

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

# Up to that many boxes, all overlaps at once take less time than a row for each box kept.
_SMALL = 64


def iou_matrix(first: npt.ArrayLike, second: npt.ArrayLike) -> Array:
    """Intersection over union of boxes x1 y1 x2 y2: [A, 4] and [B, 4] to float64 [A, B]; 0 for empty boxes."""
    a = np.asarray(first, np.float64).reshape(-1, 4)
    b = np.asarray(second, np.float64).reshape(-1, 4)
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = np.clip(sides, 0.0, None).prod(-1)
    union = _areas(a)[:, None] + _areas(b)[None] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))


def iou_nms(boxes: npt.ArrayLike, scores: npt.ArrayLike, threshold: float, limit: int | None = None) -> Indices:
    """Indices of the boxes kept, best first.

    Args:
        boxes: [N, 4] x1 y1 x2 y2.
        scores: [N].
        threshold: IoU above which the weaker box goes.
        limit: stop after that many; None for no limit.
    """
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    if len(corners) <= _SMALL:
        return suppress(iou_matrix(corners, corners), scores, threshold)[:limit]
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    kept: list[int] = []
    # One row of overlaps for each box kept, not the N x N matrix: few are kept, thousands may come in.
    while len(order) and (limit is None or len(kept) < limit):
        best, order = order[0], order[1:]
        kept.append(int(best))
        order = order[iou_matrix(corners[best], corners[order])[0] <= threshold]
    return np.array(kept, np.intp)


def suppress(similarity: npt.ArrayLike, scores: npt.ArrayLike, threshold: float) -> Indices:
    """Greedy suppression on a similarity matrix [N, N]; indices kept, best first."""
    matrix = np.asarray(similarity, np.float64)
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    kept: list[int] = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(int(best))
        order = order[matrix[best, order] <= threshold]
    return np.array(kept, np.intp)


def oks_nms(
    keypoints: npt.ArrayLike, boxes: npt.ArrayLike, scores: npt.ArrayLike, sigmas: Sequence[float], threshold: float
) -> Indices:
    """Indices of the poses kept, best first (Team OKS 2017 uses 0.5).

    Args:
        keypoints: [P, K, 2 or more] joints in image pixels.
        boxes: [P, 4] x1 y1 x2 y2, for the area of a pair.
        scores: [P] person scores.
        sigmas: K standard deviations of the skeleton.
        threshold: OKS above which the weaker pose goes.
    """
    if not len(np.asarray(scores)):
        return np.zeros(0, np.intp)
    return suppress(prediction_oks(keypoints, boxes, sigmas), scores, threshold)


def _areas(boxes: Array) -> Array:
    return np.asarray(np.clip(boxes[:, 2:] - boxes[:, :2], 0.0, None).prod(-1))
