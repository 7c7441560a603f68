"""If these fail, an export that answers wrongly would pass for a good one."""

import numpy as np
import pytest

from export.parity import POSE_LIMITS, difference, runs


def compare(distances: list[float], scores: list[float] | None = None) -> bool:
    values = np.array(distances)
    return difference("m", "x", values, np.array(scores or [0.0]), POSE_LIMITS).passes


def test_small_noise_passes() -> None:
    assert compare(list(np.linspace(0, 0.9, 1000)))


def test_half_a_pixel_everywhere_is_refused() -> None:
    assert compare([0.49] * 100)
    assert not compare([0.51] * 100)


def test_one_joint_in_fifty_astray_is_refused() -> None:
    assert not compare([0.0] * 980 + [3.0] * 20)
    assert compare([0.0] * 995 + [3.0] * 5)


def test_wrong_scores_are_refused() -> None:
    assert not compare([0.0] * 100, [0.03] * 100)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_answers_that_are_not_numbers_are_refused(value: float) -> None:
    assert not compare([value] * 100)
    assert not compare([0.0] * 100, [value] * 100)


def test_comparing_nothing_is_no_success() -> None:
    assert not compare([])


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16, 40])
def test_runs_cover_every_row_once_in_batches_of_one_two_five(count: int) -> None:
    rows = [row for part in runs(count) for row in range(count)[part]]
    assert rows == list(range(count))
    if count >= 8:
        assert [part.stop - part.start for part in runs(count)][:3] == [1, 2, 5]
