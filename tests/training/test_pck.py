"""If these failed, PCK@0.2 of LSP would not be what the name says."""

from __future__ import annotations

import numpy as np
import pytest

from service.people import People
from service.skeletons import COCO17, LSP14, Skeleton
from tests.training.test_metrics import BOX, answer, image, person, pose, shifted
from training.metrics.coco import join_joints
from training.metrics.pck import Pair, count_correct, labelled_people, pair_by_overlap, pair_in_order, similarity

SAME = join_joints(LSP14, LSP14)


def labels(seed: int = 0) -> np.ndarray:
    return pose(seed, LSP14)


def torso(keypoints: np.ndarray) -> float:
    """From the left shoulder to the right hip."""
    return float(np.hypot(*(keypoints[9, :2] - keypoints[2, :2])))


def test_a_perfect_answer_scores_one() -> None:
    pck = count_correct([Pair(0, person(labels()), labels())], 1, LSP14, SAME)
    assert pck is not None
    assert pck.mean() == 1
    assert (pck.people, pck.missed) == (1, 0)


@pytest.mark.parametrize(("part", "right"), [(0.199, True), (0.201, False)])
def test_the_threshold_is_a_fifth_of_the_torsos_diagonal(part: float, right: bool) -> None:
    wanted = labels()
    pck = count_correct([Pair(0, person(wanted), shifted(wanted, part * torso(wanted)))], 1, LSP14, SAME)
    assert pck is not None
    assert pck.mean() == float(right)


def test_rates_are_of_labelled_joints_and_a_missed_person_is_all_wrong() -> None:
    first, second = labels(1), labels(2)
    second[0, 2] = 0  # the right ankle is not labelled
    second[5, 2] = 1  # a hidden joint counts
    moved = first.copy()
    moved[5, 0] += 10 * torso(first)
    pck = count_correct([Pair(0, person(first), moved), Pair(1, person(second), None)], 2, LSP14, SAME)
    assert pck is not None
    rates = dict(zip(pck.joints, pck.rates().tolist(), strict=True))
    assert rates["right_ankle"] == 1  # 1 of 1
    assert rates["left_ankle"] == 0  # 0 of 2
    assert rates["neck"] == 0.5  # 1 of 2
    assert pck.mean() == pytest.approx((1 + 0 + 12 * 0.5) / 14)
    assert pck.missed == 1


def test_the_mean_is_over_the_joints_the_model_has() -> None:
    joints = join_joints(LSP14, COCO17)
    pck = count_correct([Pair(0, person(labels()), np.zeros((17, 3)))], 1, LSP14, joints)
    assert pck is not None
    assert len(pck.joints) == 12
    assert "neck" not in pck.joints


def test_people_without_a_labelled_torso_do_not_count() -> None:
    bare = labels()
    bare[2, 2] = 0
    assert count_correct([Pair(0, person(bare), bare)], 1, LSP14, SAME) is None
    faces = Skeleton("face", ("nose", "left_eye"), (), (0.026, 0.025))
    assert count_correct([], 1, faces, join_joints(faces, COCO17)) is None


def test_a_joint_that_is_never_labelled_has_no_rate() -> None:
    bare = labels()
    bare[13, 2] = 0
    pck = count_correct([Pair(0, person(bare), bare)], 1, LSP14, SAME)
    assert pck is not None
    assert "head_top" not in pck.summary(0, np.random.default_rng(0))["joints"]
    assert pck.mean() == 1


def test_the_spread_is_that_of_a_share() -> None:
    # Each picture's person is all right or all wrong: the spread of the mean is that of a coin.
    rng = np.random.default_rng(0)
    wanted = labels()
    pairs = [Pair(k, person(wanted), wanted if rng.random() < 0.6 else None) for k in range(300)]
    pck = count_correct(pairs, 300, LSP14, SAME)
    assert pck is not None
    share = pck.mean()
    assert pck.spread(400, rng) == pytest.approx(np.sqrt(share * (1 - share) / 300), rel=0.15)
    assert pck.spread(0, rng) is None


def found(boxes: list[tuple[float, ...]], scores: list[float]) -> People:
    """People told apart by the x of their first joint: their place in the list."""
    keypoints = np.zeros((len(boxes), 14, 3))
    keypoints[:, 0, 0] = range(len(boxes))
    return People(np.array(boxes).reshape(-1, 4), np.array(scores), keypoints, np.array(scores))


def test_people_are_paired_by_overlap_each_answer_once() -> None:
    near = (30.0, 30.0, 130.0, 230.0)
    other = (400.0, 30.0, 500.0, 230.0)
    record = image(1, person(labels(1), box=near), person(labels(2)), person(labels(3), box=other))
    pairs = pair_by_overlap(4, record, found([(25, 30, 125, 230), BOX], [0.9, 0.5]), 0.1)
    assert [None if pair.keypoints is None else pair.keypoints[0, 0] for pair in pairs] == [0, 1, None]
    assert {pair.picture for pair in pairs} == {4}


def test_answers_below_the_served_threshold_are_not_looked_at() -> None:
    people = found([BOX, (25, 30, 125, 230)], [0.2, 0.9])
    (pair,) = pair_by_overlap(0, image(1, person(labels())), people, 0.25)
    assert pair.keypoints is not None
    assert pair.keypoints[0, 0] == 1
    (pair,) = pair_by_overlap(0, image(1, person(labels())), people.select(np.array([0])), 0.25)
    assert pair.keypoints is None


def test_given_boxes_are_paired_in_their_order() -> None:
    crowd = person(labels(3), crowd=True)
    silent = person(np.zeros((14, 3)))
    record = image(1, person(labels(1)), crowd, silent, person(labels(2)))
    assert len(labelled_people(record)) == 2
    pairs = pair_in_order(0, record, found([BOX, BOX], [1.0, 1.0]))
    assert [pair.person for pair in pairs] == [record.people[0], record.people[3]]
    assert [pair.keypoints[0, 0] for pair in pairs if pair.keypoints is not None] == [0, 1]
    with pytest.raises(ValueError, match="zip"):
        pair_in_order(0, record, answer(1, [labels()], [1.0], joints=14).people)


def test_the_similarity_of_a_pair_is_its_oks() -> None:
    wanted = labels()
    assert similarity(Pair(0, person(wanted), wanted), SAME) == pytest.approx(1)
    assert similarity(Pair(0, person(wanted), None), SAME) == 0
    # The bottom line of OKS: exp(-d^2 / (2 area (2 sigma)^2)), averaged over the joints.
    moved = shifted(wanted, 9.0)
    expected = np.mean([np.exp(-81 / (2 * 10_000 * 4 * sigma**2)) for sigma in LSP14.sigmas])
    assert similarity(Pair(0, person(wanted), moved), SAME) == pytest.approx(expected)
