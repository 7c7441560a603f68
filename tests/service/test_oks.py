"""OKS decides which poses are one person; if it were off, people would vanish or be doubled."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from service.oks import AREA_OF_BOX, pairwise_oks, prediction_oks
from service.skeletons import COCO17


def by_pycocotools(truth: np.ndarray, found: np.ndarray, areas: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """computeOks' matrix as [truth, found]; found poses are given descending scores, as it sorts them."""
    flat = [np.concatenate([xy, np.full((17, 1), 2.0)], 1).reshape(-1).tolist() for xy in found]
    truths = []
    for index, (xy, seen) in enumerate(zip(truth, visible, strict=True)):
        keypoints = np.concatenate([xy, np.where(seen, 2.0, 0.0)[:, None]], 1).reshape(-1).tolist()
        truths.append(
            {"id": index + 1, "image_id": 1, "category_id": 1, "keypoints": keypoints, "area": areas[index],
             "num_keypoints": int(seen.sum()), "bbox": [0, 0, 1e5, 1e5], "iscrowd": 0}
        )  # fmt: skip
    coco = COCO()
    coco.dataset = {"info": {}, "images": [{"id": 1}], "annotations": truths, "categories": [{"id": 1}]}
    coco.createIndex()
    results = coco.loadRes(
        [
            {"image_id": 1, "category_id": 1, "keypoints": one, "score": 1.0 - 0.01 * index}
            for index, one in enumerate(flat)
        ]
    )
    evaluation = COCOeval(coco, results, "keypoints")
    evaluation._prepare()
    return np.asarray(evaluation.computeOks(1, 1)).T


@pytest.mark.parametrize("seed", range(5))
def test_oks_is_pycocotools(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0, 300, (4, 17, 2))
    found = truth[rng.integers(0, 4, 6)] + rng.normal(0, 12, (6, 17, 2))
    areas = rng.uniform(500, 40_000, 4)
    visible = rng.random((4, 17)) < 0.7
    visible[:, 0] = True
    expected = by_pycocotools(truth, found, areas, visible)
    assert np.allclose(pairwise_oks(truth, found, areas[:, None], COCO17.sigmas, visible), expected, atol=1e-9)
    everything = np.ones_like(visible)
    expected = by_pycocotools(truth, found, areas, everything)
    assert np.allclose(pairwise_oks(truth, found, areas[:, None], COCO17.sigmas), expected, atol=1e-9)


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10))
def test_oks_is_symmetric_and_knows_no_place_or_size(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 100, (3, 17, 2))
    corners = rng.uniform(0, 50, (3, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 60, (3, 2))], 1)
    matrix = prediction_oks(points, boxes, COCO17.sigmas)
    assert np.allclose(matrix, matrix.T)
    assert np.allclose(np.diag(matrix), 1)
    assert ((matrix >= 0) & (matrix <= 1)).all()
    assert np.allclose(matrix, prediction_oks(points * scale + 7, boxes * scale + 7, COCO17.sigmas), atol=1e-9)


def test_predictions_share_the_mean_of_their_areas() -> None:
    first, second = np.zeros((17, 2)), np.full((17, 2), 3.0)
    boxes = np.array([[0, 0, 10, 20], [0, 0, 30, 40.0]])
    area = AREA_OF_BOX * (200 + 1200) / 2
    closed = np.mean([np.exp(-18 / (2 * area * (2 * sigma) ** 2)) for sigma in COCO17.sigmas])
    assert prediction_oks(np.stack([first, second]), boxes, COCO17.sigmas)[0, 1] == pytest.approx(closed, abs=1e-9)


def test_degenerate_people_give_numbers() -> None:
    points = np.zeros((2, 17, 2))
    assert np.isfinite(prediction_oks(points, np.zeros((2, 4)), COCO17.sigmas)).all()
    nothing_seen = pairwise_oks(points, points, 100.0, COCO17.sigmas, np.zeros((2, 17), bool))
    assert np.array_equal(nothing_seen, np.zeros((2, 2)))
    assert prediction_oks(np.zeros((0, 17, 3)), np.zeros((0, 4)), COCO17.sigmas).shape == (0, 0)
