"""Person scores rank all people of a data set: a different formula is a different AP."""

from __future__ import annotations

import numpy as np
import pytest

from service.rescoring import rescore

BOXES = [0.9, 0.5]
JOINTS = [[0.1, 0.3, 0.8], [0.0, 0.1, 0.2]]


def test_rescoring_is_box_score_times_mean_of_all_joints() -> None:
    assert rescore(BOXES, JOINTS, True) == pytest.approx([0.9 * 0.4, 0.5 * 0.1])


def test_without_rescoring_the_box_score_stays() -> None:
    assert rescore(BOXES, JOINTS, False).tolist() == BOXES


def test_the_published_variant_takes_joints_above_a_fifth() -> None:
    assert rescore(BOXES, JOINTS, "mean_over_0.2") == pytest.approx([0.9 * (0.3 + 0.8) / 2, 0.0])


def test_unknown_methods_are_refused() -> None:
    with pytest.raises(ValueError, match="median"):
        rescore(BOXES, JOINTS, "median")


def test_nobody_has_no_scores() -> None:
    for method in (True, False, "mean_over_0.2"):
        assert rescore([], np.zeros((0, 17)), method).shape == (0,)
