"""Non-maximum suppression of boxes by IoU and of poses by OKS: hard, or soft with decayed scores.

Hard suppression keeps the best by score and drops what overlaps it by *more* than the threshold (HRNet, MSPN and
torchvision keep what is equal to it). Soft suppression (Soft-NMS, Bodla et al. 2017) lowers the scores of what overlaps
a better one and answers the lowered scores: what ranks people afterwards must be those, or nothing has happened. Equal
scores keep the earlier one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from service.oks import prediction_oks

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Decay = Literal["gaussian", "linear"]
# x1 y1 x2 y2.
Box = tuple[float, float, float, float]

# Up to that many boxes, all overlaps at once (soft), or one after the other in plain numbers (hard), take less time
# than a row of overlaps for each box kept.
_SMALL = 64
# Scores that soft suppression lowers below this are gone (Bodla et al. use the same).
FLOOR = 0.001
# Stands in for a union of empty boxes, whose intersection is 0 too.
_NO_AREA = float(np.finfo(np.float64).tiny)


def iou_matrix(first: npt.ArrayLike, second: npt.ArrayLike) -> Array:
    """Intersection over union of boxes x1 y1 x2 y2: [A, 4] and [B, 4] to float64 [A, B]; 0 for empty boxes."""
    a = np.asarray(first, np.float64).reshape(-1, 4)
    b = np.asarray(second, np.float64).reshape(-1, 4)
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    sides = np.maximum(sides, 0.0)
    shared = sides[..., 0] * sides[..., 1]
    union = _areas(a)[:, None] + _areas(b)[None] - shared
    return np.asarray(shared / np.maximum(union, _NO_AREA))


def iou_nms(
    boxes: Array | Sequence[Box], scores: Array | Sequence[float], threshold: float, limit: int | None = None
) -> Indices:
    """Indices of the boxes kept, best first.

    Args:
        boxes: [N, 4] x1 y1 x2 y2; few of them are looked at soonest as plain tuples.
        scores: [N].
        threshold: IoU above which the weaker box goes.
        limit: stop after that many; None for no limit.
    """
    if len(scores) <= _SMALL:
        return np.array(_nms_of_few(_plain(boxes), _plain(scores), threshold, limit), np.intp)
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
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
    alike = np.asarray(similarity, np.float64) > threshold
    ranks = np.asarray(scores, np.float64).tolist()
    gone: set[int] = set()
    kept: list[int] = []
    for best in sorted(range(len(ranks)), key=ranks.__getitem__, reverse=True):  # stable, as sorted() is
        if best not in gone:
            kept.append(best)
            gone.update(alike[best].nonzero()[0].tolist())
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


def soft_suppress(
    similarity: npt.ArrayLike,
    scores: npt.ArrayLike,
    threshold: float,
    *,
    method: Decay = "gaussian",
    floor: float = FLOOR,
    limit: int | None = None,
) -> tuple[Indices, Array]:
    """Soft-NMS on a similarity matrix (Bodla et al. 2017).

    The best that is left is taken, then the scores of all others are lowered by how similar they are to it, and so on.

    Args:
        similarity: [N, N] in 0..1.
        scores: [N].
        threshold: of ``gaussian`` the width sigma in ``s * exp(-similarity^2 / sigma)`` (0: whatever is similar at all
            loses its whole score); of ``linear`` the similarity above which ``s * (1 - similarity)``.
        method: how scores decay.
        floor: who is lowered below is dropped; a score that nobody lowered stays, however small.
        limit: stop after that many; None for no limit.

    Returns:
        indices kept, best first, and their lowered scores [kept], never rising.
    """
    matrix = np.asarray(similarity, np.float64)
    return _soften(lambda best, left: matrix[best, left], scores, threshold, method, floor, limit)


def soft_iou_nms(
    boxes: npt.ArrayLike,
    scores: npt.ArrayLike,
    threshold: float,
    *,
    method: Decay = "gaussian",
    floor: float = FLOOR,
    limit: int | None = None,
) -> tuple[Indices, Array]:
    """:func:`soft_suppress` of boxes [N, 4] x1 y1 x2 y2 by their IoU."""
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    if len(corners) <= _SMALL:
        matrix = iou_matrix(corners, corners)
        return soft_suppress(matrix, scores, threshold, method=method, floor=floor, limit=limit)
    return _soften(
        lambda best, left: iou_matrix(corners[best], corners[left])[0], scores, threshold, method, floor, limit
    )


def soft_oks_nms(
    keypoints: npt.ArrayLike,
    boxes: npt.ArrayLike,
    scores: npt.ArrayLike,
    sigmas: Sequence[float],
    threshold: float,
    *,
    method: Decay = "gaussian",
    floor: float = FLOOR,
) -> tuple[Indices, Array]:
    """:func:`soft_suppress` of poses; arguments as in :func:`oks_nms`.

    HRNet and mmpose publish the Gaussian form with ``threshold`` as its width, but answer the scores from before.
    """
    if not len(np.asarray(scores)):
        return np.zeros(0, np.intp), np.zeros(0)
    return soft_suppress(prediction_oks(keypoints, boxes, sigmas), scores, threshold, method=method, floor=floor)


def _soften(
    overlaps: Callable[[np.intp, Indices], Array],
    scores: npt.ArrayLike,
    threshold: float,
    method: Decay,
    floor: float,
    limit: int | None,
) -> tuple[Indices, Array]:
    """:func:`soft_suppress` with the similarities of one to the others as they are needed."""
    left = np.array(scores, np.float64)
    index = np.arange(len(left))
    kept: list[np.intp] = []
    lowered: list[float] = []
    while len(index) and (limit is None or len(kept) < limit):
        best = int(left.argmax())
        kept.append(index[best])
        lowered.append(float(left[best]))
        index, left = np.delete(index, best), np.delete(left, best)
        factors = _decay(overlaps(kept[-1], index), threshold, method)
        left = left * factors
        seen = (left >= floor) | (factors == 1)
        index, left = index[seen], left[seen]
    return np.array(kept, np.intp), np.array(lowered)


def _decay(overlap: Array, threshold: float, method: Decay) -> Array:
    """Factors in 0..1."""
    if method == "linear":
        return np.where(overlap > threshold, 1.0 - overlap, 1.0)
    if threshold == 0:
        return np.where(overlap > 0, 0.0, 1.0)
    return np.asarray(np.exp(-(overlap**2) / threshold))


def _plain(numbers: Array | Sequence[Any]) -> Sequence[Any]:
    return numbers.tolist() if isinstance(numbers, np.ndarray) else numbers


def _nms_of_few(boxes: Sequence[Box], scores: Sequence[float], threshold: float, limit: int | None) -> list[int]:
    """:func:`iou_nms` in plain numbers: right after a network has run, each kind of array operation waits for memory.

    For a picture's people it takes half of the time that arrays take then; from warm caches both take 20 us.
    """
    kept: list[int] = []
    better: list[tuple[float, float, float, float, float]] = []
    for index in sorted(range(len(scores)), key=scores.__getitem__, reverse=True):  # stable, as sorted() is
        if len(kept) == limit:
            break
        left, top, right, bottom = boxes[index]
        area = max(right - left, 0.0) * max(bottom - top, 0.0)
        for x1, y1, x2, y2, other in better:
            shared = max(min(right, x2) - max(left, x1), 0.0) * max(min(bottom, y2) - max(top, y1), 0.0)
            if shared / max(area + other - shared, _NO_AREA) > threshold:
                break
        else:
            kept.append(index)
            better.append((left, top, right, bottom, area))
    return kept


def _areas(boxes: Array) -> Array:
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0)
    return np.asarray(sides[:, 0] * sides[:, 1])
