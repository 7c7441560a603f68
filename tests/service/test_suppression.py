"""Suppression: one person, one answer; and nobody dropped who overlaps less than the threshold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask

from service.oks import prediction_oks
from service.skeletons import COCO17
from service.suppression import (
    FLOOR,
    Decay,
    iou_matrix,
    iou_nms,
    oks_nms,
    soft_iou_nms,
    soft_oks_nms,
    soft_suppress,
    suppress,
)

seeds = st.integers(0, 2**32 - 1)


def random_boxes(rng: np.random.Generator, count: int, span: float = 60) -> np.ndarray:
    corners = rng.uniform(0, span, (count, 2))
    return np.concatenate([corners, corners + rng.uniform(1, 50, (count, 2))], 1)


@given(seeds)
def test_iou_is_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = random_boxes(rng, 5), random_boxes(rng, 7)
    as_coco = [np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], 1) for b in (first, second)]
    assert np.allclose(iou_matrix(first, second), mask.iou(*as_coco, [0] * 7), atol=1e-9)


def test_iou_of_empty_boxes_is_zero() -> None:
    boxes = np.array([[5, 5, 5, 5], [9, 9, 3, 3], [0, 0, 10, 10.0]])
    assert np.array_equal(iou_matrix(boxes, boxes), np.diag([0, 0, 1.0]))
    assert iou_matrix(np.zeros((0, 4)), boxes).shape == (0, 3)


@given(seeds, st.floats(0.05, 0.95), st.sampled_from([3, 40, 120]))
def test_box_nms_is_torchvisions(seed: int, threshold: float, count: int) -> None:
    rng = np.random.default_rng(seed)
    boxes, scores = random_boxes(rng, count), rng.permutation(count) / count
    expected = torchvision.ops.nms(torch.tensor(boxes), torch.tensor(scores), threshold).tolist()
    assert iou_nms(boxes, scores, threshold).tolist() == expected
    assert iou_nms(boxes, scores, threshold, limit=5).tolist() == expected[:5]


@given(seeds, st.floats(0, 1))
def test_survivors_are_unlike_each_other_and_everyone_else_is_like_a_better_one(seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    boxes, scores = random_boxes(rng, 15, 20), rng.random(15)
    poses = np.concatenate([boxes[:, None, :2] + rng.uniform(0, 12, (15, 17, 2)), np.ones((15, 17, 1))], -1)
    likeness = prediction_oks(poses, boxes, COCO17.sigmas)
    kept = oks_nms(poses, boxes, scores, COCO17.sigmas, threshold)
    assert (np.diff(scores[kept]) <= 0).all()
    for index in range(15):
        better = [k for k in kept if scores[k] > scores[index]]
        dropped = any(likeness[k, index] > threshold for k in better)
        assert (index in kept) != dropped


def test_equal_scores_keep_the_first_and_equal_overlap_stays() -> None:
    likeness = np.array([[1, 0.5, 0.2], [0.5, 1, 0.9], [0.2, 0.9, 1.0]])
    assert suppress(likeness, [0.7, 0.7, 0.7], 0.5).tolist() == [0, 1]
    assert suppress(likeness, [0.7, 0.7, 0.7], 0.49).tolist() == [0, 2]


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_nobody_in_nobody_out(threshold: float) -> None:
    assert iou_nms(np.zeros((0, 4)), [], threshold).tolist() == []
    assert oks_nms(np.zeros((0, 17, 3)), np.zeros((0, 4)), [], COCO17.sigmas, threshold).tolist() == []


def test_threshold_one_keeps_even_doubles() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10.0]])
    assert iou_nms(boxes, [0.5, 0.6], 1.0).tolist() == [1, 0]


def slow_soft_nms(
    similarity: np.ndarray, scores: np.ndarray, threshold: float, method: Decay, floor: float
) -> list[tuple[int, float]]:
    """Figure 2 of Bodla et al. 2017, one pair at a time."""
    left = dict(enumerate(scores.tolist()))
    taken = []
    while left:
        best = max(left, key=lambda index: (left[index], -index))
        taken.append((best, left.pop(best)))
        for index in list(left):
            overlap = float(similarity[best, index])
            if method == "linear":
                factor = 1 - overlap if overlap > threshold else 1.0
            elif threshold > 0:
                factor = math.exp(-(overlap**2) / threshold)
            else:
                factor = 1.0 if overlap == 0 else 0.0
            left[index] *= factor
            if left[index] < floor and factor < 1:
                del left[index]
    return taken


@given(
    seeds,
    st.one_of(st.just(0.0), st.floats(0.05, 1)),
    st.sampled_from([2, 30, 90]),
    st.sampled_from(["gaussian", "linear"]),
    st.sampled_from([0.0, FLOOR, 0.2]),
)
def test_soft_nms_is_the_papers(seed: int, threshold: float, count: int, method: Decay, floor: float) -> None:
    rng = np.random.default_rng(seed)
    boxes, scores = random_boxes(rng, count), rng.permutation(count) / count
    likeness = iou_matrix(boxes, boxes)
    expected = slow_soft_nms(likeness, scores, threshold, method, floor)
    for limit in (None, 4):
        for kept, lowered in (
            soft_suppress(likeness, scores, threshold, method=method, floor=floor, limit=limit),
            soft_iou_nms(boxes, scores, threshold, method=method, floor=floor, limit=limit),
        ):
            assert kept.tolist() == [index for index, _ in expected[:limit]]
            assert np.allclose(lowered, [score for _, score in expected[:limit]], rtol=1e-9)
            assert (np.diff(lowered) <= 0).all()


def test_soft_oks_nms_answers_lowered_scores() -> None:
    # Two poses of OKS 1 and one far away: the published implementations answer 0.9, 0.8, 0.7 unchanged.
    pose = np.random.default_rng(0).uniform(0, 50, (17, 2))
    poses, box = np.stack([pose, pose, pose + 1000]), [0, 0, 50, 50]
    kept, lowered = soft_oks_nms(poses, [box, box, np.add(box, 1000)], [0.9, 0.8, 0.7], COCO17.sigmas, 0.5)
    assert kept.tolist() == [0, 2, 1]
    assert lowered == pytest.approx([0.9, 0.7, 0.8 * math.exp(-1 / 0.5)])


def test_soft_suppression_at_sigma_zero_keeps_whom_hard_suppression_keeps() -> None:
    rng = np.random.default_rng(3)
    boxes, scores = random_boxes(rng, 40), rng.random(40)
    kept, lowered = soft_iou_nms(boxes, scores, 0.0)
    assert kept.tolist() == iou_nms(boxes, scores, 0.0).tolist()
    assert np.array_equal(lowered, scores[kept])


def test_soft_suppression_of_nobody() -> None:
    assert [len(part) for part in soft_iou_nms(np.zeros((0, 4)), [], 0.5)] == [0, 0]
    assert [len(p) for p in soft_oks_nms(np.zeros((0, 17, 3)), np.zeros((0, 4)), [], COCO17.sigmas, 0.5)] == [0, 0]


def test_a_small_score_that_nobody_lowered_stays() -> None:
    kept, lowered = soft_suppress([[1, 0.0], [0.0, 1]], [0.5, 1e-6], 0.5)
    assert kept.tolist() == [0, 1]
    assert lowered.tolist() == [0.5, 1e-6]
