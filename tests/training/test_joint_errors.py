"""If these failed, the table of what goes wrong would blame the wrong cause."""

from __future__ import annotations

import numpy as np
import pytest

from service.skeletons import COCO17
from tests.training.test_metrics import AREA, person
from training.metrics.coco import join_joints
from training.metrics.joint_errors import KINDS, joint_errors
from training.metrics.pck import Pair

SAME = join_joints(COCO17, COCO17)
LEFT, RIGHT = COCO17.joints.index("left_knee"), COCO17.joints.index("right_knee")


def spread_out() -> np.ndarray:
    """[17, 3] joints so far apart that none is near another."""
    points = np.stack(np.meshgrid(np.arange(5.0), np.arange(4.0)), -1).reshape(-1, 2)[:17] * 200
    return np.concatenate([points, np.full((17, 1), 2.0)], 1)


def distance(similarity: float) -> float:
    """How far a knee is moved to have that similarity: exp(-d^2 / (2 area (2 sigma)^2))."""
    return float(np.sqrt(-2 * AREA * (2 * COCO17.sigmas[LEFT]) ** 2 * np.log(similarity)))


@pytest.mark.parametrize(("similarity", "kind"), [(0.86, "good"), (0.84, "jitter"), (0.51, "jitter"), (0.49, "miss")])
def test_a_joint_that_moves_away_is_good_then_jitter_then_a_miss(similarity: float, kind: str) -> None:
    moved = spread_out()
    moved[LEFT, 0] += distance(similarity)
    errors = joint_errors([Pair(0, person(spread_out()), moved)], SAME)
    assert errors is not None
    assert list(errors) == list(KINDS)
    assert errors[kind] == pytest.approx(1.0 if kind == "good" else 1 / 17)
    assert sum(errors.values()) == pytest.approx(1)


def test_left_for_right_is_an_inversion_and_a_neighbours_knee_a_swap() -> None:
    inverted, swapped, neighbour = spread_out(), spread_out(), spread_out()
    inverted[LEFT, :2] = inverted[RIGHT, :2]
    neighbour[:, :2] += 90
    swapped[LEFT, :2] = neighbour[LEFT, :2]
    for answer, kind in ((inverted, "inversion"), (swapped, "swap")):
        beside = Pair(0, person(neighbour), neighbour)
        errors = joint_errors([Pair(0, person(spread_out()), answer), beside], SAME)
        assert errors is not None
        assert errors[kind] == pytest.approx(1 / 34)
    # In another picture there is nobody to take it for.
    elsewhere = joint_errors([Pair(0, person(spread_out()), swapped), Pair(1, person(neighbour), neighbour)], SAME)
    assert elsewhere is not None
    assert (elsewhere["swap"], elsewhere["miss"]) == (0, pytest.approx(1 / 34))


def test_only_labelled_joints_of_found_people_count() -> None:
    labels = spread_out()
    labels[RIGHT, 2] = 0
    answer = spread_out()
    # Where the label would be is not known: it cannot be what a joint was taken for.
    answer[LEFT, :2] = answer[RIGHT, :2]
    errors = joint_errors([Pair(0, person(labels), answer), Pair(0, person(spread_out()), None)], SAME)
    assert errors is not None
    # The neighbour who was not found still stands where this one's own joints are, but not at this knee's.
    assert errors["good"] == pytest.approx(15 / 16)
    assert errors["miss"] == pytest.approx(1 / 16)
    assert joint_errors([Pair(0, person(labels), None)], SAME) is None
