"""If these failed, a model card would call scores honest that are not."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from service.skeletons import COCO17
from tests.training.test_joint_errors import spread_out
from tests.training.test_metrics import person
from training.metrics.coco import join_joints
from training.metrics.pck import Pair
from training.reliability import draw_reliability, reliability

SAME = join_joints(COCO17, COCO17)


def answered(right: int, score: float) -> Pair:
    """A person ``right`` of whose 17 joints are where they should be, all of one score."""
    joints = spread_out()
    joints[right:, :2] += 5_000
    joints[:, 2] = score
    return Pair(0, person(spread_out()), joints)


def test_the_error_is_the_distance_between_score_and_share() -> None:
    honest = reliability([answered(17, 1.0), answered(0, 0.0)], SAME)
    assert honest is not None
    assert honest.error == pytest.approx(0)
    boastful = reliability([answered(0, 1.0), answered(17, 0.75)], SAME)
    assert boastful is not None
    np.testing.assert_allclose(boastful.scores, [0.75, 1.0])
    np.testing.assert_allclose(boastful.shares, [1.0, 0.0])
    assert boastful.error == pytest.approx((1.0 + 0.25) / 2)


def test_joints_without_a_label_and_people_who_were_not_found_say_nothing() -> None:
    labels = spread_out()
    labels[3:, 2] = 0
    half = Pair(0, person(labels), answered(17, 0.5).keypoints)
    curve = reliability([half, Pair(0, person(spread_out()), None)], SAME)
    assert curve is not None
    assert curve.counts.tolist() == [3]
    assert reliability([Pair(0, person(labels), None)], SAME) is None


def test_the_picture_can_be_read(tmp_path: Path) -> None:
    curve = reliability([answered(9, 0.4), answered(15, 0.9)], SAME)
    assert curve is not None
    path = draw_reliability({"photos": curve, "others": curve}, tmp_path / "new" / "curve.png")
    picture = cv2.imread(str(path))
    assert picture is not None and picture.std() > 5
