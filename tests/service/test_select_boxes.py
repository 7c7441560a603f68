"""Which of a detector's rows are posed (:func:`service.steps.select_boxes`)."""

from __future__ import annotations

import numpy as np
import pytest

from service.errors import InferenceFailed
from service.letterbox import Letterbox
from service.options import PoseOptions
from service.steps import select_boxes

PLACED = Letterbox.fit(200, 100, 100)  # half as large
ROWS = [
    [10, 5, 30, 45],  # 20,10 60,90 in the picture
    [11, 5, 30, 45],  # the same person
    [60, 10, 80, 40],
    [70, 60, 90, 90],  # below the picture: nothing of it is left
    [0, 0, 0, 0],  # padding
]
SCORES = [0.75, 0.5, 0.25, 0.9, 0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("threshold", "expected"), [(0.0, [0.75, 0.25]), (1e-30, [0.75, 0.25]), (0.25, [0.75, 0.25]), (0.26, [0.75])]
)
def test_threshold_padding_and_overlap(dtype: type, threshold: float, expected: list[float]) -> None:
    options = PoseOptions(box_threshold=threshold)
    boxes, scores = select_boxes((np.array(ROWS, dtype), np.array(SCORES, dtype)), PLACED, options)
    assert boxes.dtype == scores.dtype == np.float64
    assert scores.tolist() == expected
    assert boxes.tolist() == [[20, 10, 60, 90], [120, 20, 160, 80]][: len(expected)]


def test_no_rows_and_no_one() -> None:
    options = PoseOptions(box_threshold=0.5)
    for rows in (0, 3):
        boxes, scores = select_boxes((np.zeros((rows, 4), np.float32), np.zeros(rows, np.float32)), PLACED, options)
        assert boxes.shape == (0, 4) and scores.shape == (0,)


@pytest.mark.parametrize("place", range(4))
def test_a_box_that_is_not_numbers_is_the_detectors_failure(place: int) -> None:
    """It would be a person without pixels; those that are no candidates may hold anything."""
    rows, scores = np.array(ROWS, np.float32), np.array(SCORES, np.float32)
    rows[4] = np.nan  # padding
    assert len(select_boxes((rows, scores), PLACED, PoseOptions(box_threshold=0.1))[0]) == 2
    rows[2, place] = np.nan
    with pytest.raises(InferenceFailed, match="not numbers"):
        select_boxes((rows, scores), PLACED, PoseOptions(box_threshold=0.1))
