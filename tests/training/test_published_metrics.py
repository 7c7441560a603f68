"""If these failed, figures named after AI Challenger, MPII and CrowdPose could not be put beside published ones.

Every expected value is worked out by hand from the published evaluation's formula.
"""

from __future__ import annotations

from dataclasses import replace
from math import exp, sqrt

import numpy as np
import pytest

from service.skeletons import AIC14, COCO17, CROWDPOSE14, MPII16, UNION19
from tests.training.test_metrics import answer, image, person, pose, shifted
from training.answers import EvaluationError
from training.metrics.aic import AIC_SIGMAS, aic_score
from training.metrics.coco import join_joints, keypoint_figures
from training.metrics.crowding import crowd_figures, crowd_part
from training.metrics.pck import Pair
from training.metrics.pckh import count_within_heads

AIC = join_joints(AIC14, AIC14)
RNG = np.random.default_rng(0)


def aic_pose(seed: int = 0) -> np.ndarray:
    return pose(seed, AIC14)


def test_ai_challengers_oks_has_twice_its_sigma_and_the_box() -> None:
    # One visible joint, the right hip, 10 pixels off; box 100 x 200. delta = 2 * 0.03909642:
    # exp(-100 / (2 * 0.07819284^2 * 20001)) = exp(-0.40889...) = 0.66, so hits at .50 .55 .60 .65 of ten thresholds.
    truth = aic_pose()
    truth[:, 2] = 1
    hip = AIC14.joints.index("right_hip")
    truth[hip, 2] = 2
    given = shifted(truth, 10.0)
    assert exp(-100 / (2 * (2 * 0.03909642) ** 2 * 20001)) == pytest.approx(0.6644, abs=1e-3)
    score = aic_score([image(1, person(truth))], [answer(1, [given], [0.9], joints=14)], AIC, 0.25)
    assert score is not None
    assert score.rates().tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert score.summary(0, RNG)["score"] == pytest.approx(0.4)
    # COCO's sigma of a hip is 2.7 times as large: OKS would be 0.95.
    assert COCO17.sigmas[12] / AIC_SIGMAS["right_hip"] == pytest.approx(2.74, abs=0.01)


def test_hidden_joints_do_not_count_and_nobody_visible_is_never_met() -> None:
    truth = aic_pose()
    truth[3:, 2] = 1  # hidden
    wrong = truth.copy()
    wrong[3:, :2] += 500
    right = aic_score([image(1, person(truth))], [answer(1, [wrong], [0.9], joints=14)], AIC, 0.25)
    assert right is not None
    assert right.rates().mean() == 1
    truth[:, 2] = 1
    never = aic_score([image(1, person(truth))], [answer(1, [truth], [0.9], joints=14)], AIC, 0.25)
    assert never is not None
    assert never.rates().mean() == 0


def test_one_answer_may_serve_several_people_and_each_person_too_many_costs() -> None:
    truth = aic_pose()
    same = [person(truth), person(truth)]
    # Picture 1: two people, one answer, met twice: 2 of max(2, 1). Picture 2: one person, three answers: 1 of 3.
    # Picture 3: a person and no answer: 0 of 1. Picture 4: nobody and one answer: 0 of 1. Together 3 of 7.
    far = shifted(truth, 300.0)
    images = [image(1, *same), image(2, person(truth)), image(3, person(truth)), image(4)]
    answers = [answer(1, [truth], [0.9], joints=14), answer(2, [far, truth, far], [0.9, 0.3, 0.5], joints=14),
               answer(3, joints=14), answer(4, [far], [0.8], joints=14)]  # fmt: skip
    score = aic_score(images, answers, AIC, 0.25)
    assert score is not None
    assert score.summary(50, RNG)["score"] == pytest.approx(3 / 7)
    assert score.summary(50, RNG)["spread"] > 0
    assert (score.labelled, score.answered) == (4, 5)
    # Without what is served under 0.4: the right answer of picture 2 is gone, 2 of 2 + 2 + 1 + 1.
    strict = aic_score(images, answers, AIC, 0.4)
    assert strict is not None
    assert strict.rates().mean() == pytest.approx(2 / 6)


def test_joints_without_a_sigma_of_ai_challengers_are_refused() -> None:
    with pytest.raises(EvaluationError, match="nose"):
        aic_score([image(1)], [answer(1)], join_joints(COCO17, COCO17), 0.25)
    assert aic_score([], [], AIC, 0.25) is None


def test_a_head_is_the_measure_of_pckh() -> None:
    joints = join_joints(MPII16, MPII16)
    truth = pose(0, MPII16)
    first = replace(person(truth), head=40.0)
    off = truth.copy()
    off[:8, 0] += 19.99  # legs, pelvis and thorax: within half a head
    off[8:, 0] += 20.01  # neck, head top and arms: not
    pckh = count_within_heads([Pair(0, first, off)], 1, joints)
    assert pckh is not None
    rates = pckh.summary(0, RNG)["joints"]
    assert rates["pelvis"] == 1
    assert rates["right_wrist"] == 0
    # Mean without pelvis and thorax: 6 of 14.
    assert pckh.mean() == pytest.approx(6 / 14)


def test_pckhs_mean_counts_every_labelled_joint_alike() -> None:
    joints = join_joints(MPII16, MPII16)
    first, second = pose(0, MPII16), pose(1, MPII16)
    second[1:, 2] = 0  # one joint labelled: the right ankle
    people = [Pair(0, replace(person(first), head=40.0), first), Pair(1, replace(person(second), head=40.0), None),
              Pair(2, person(first), None)]  # fmt: skip
    pckh = count_within_heads(people, 3, joints)
    assert pckh is not None
    # 14 right of 15; a mean over joints would be (13 + 0.5) / 14. The third has no head and does not count.
    assert pckh.mean() == pytest.approx(14 / 15)
    assert pckh.summary(20, RNG)["missed"] == 1
    assert pckh.counts.people == 2
    assert count_within_heads(people[2:], 3, joints) is None


def test_pckh_of_a_model_without_pelvis_and_thorax() -> None:
    joints = join_joints(MPII16, UNION19)
    truth = pose(0, MPII16)
    given = np.zeros((19, 3))
    given[list(joints.in_answer)] = truth[list(joints.in_truth)]
    pckh = count_within_heads([Pair(0, replace(person(truth), head=40.0), given)], 1, joints)
    assert pckh is not None
    assert pckh.mean() == 1
    assert joints.left_out == ("pelvis", "thorax")


@pytest.mark.parametrize(
    ("index", "part"),
    [(0.0, "easy"), (0.1999, "easy"), (0.2, "medium"), (0.7999, "medium"), (0.8, "hard"), (1.0, "hard")],
)
def test_crowdposes_bounds(index: float, part: str) -> None:
    assert crowd_part(index) == part


def test_each_part_of_crowdpose_has_the_ap_of_its_own_pictures() -> None:
    joints = join_joints(CROWDPOSE14, CROWDPOSE14)
    truths = [pose(k, CROWDPOSE14) for k in range(4)]
    # Easy: both right. Medium: one of two people found, AP = 51 of 101 recalls. Hard: no picture.
    images = [
        replace(image(1, person(truths[0])), crowd_index=0.1),
        replace(image(2, person(truths[1])), crowd_index=0.19),
        replace(image(3, person(truths[2]), person(truths[3])), crowd_index=0.5),
    ]
    answers = [answer(k + 1, [truths[k]], [0.9], joints=14) for k in range(3)]
    found = crowd_figures(images, answers, joints)
    rows = found.summary(20, RNG)
    assert rows["easy"]["AP"] == pytest.approx(1)
    assert rows["medium"]["AP"] == pytest.approx(51 / 101)
    assert rows["hard"] == {"AP": None, "spread": None, "pictures": 0}
    assert (rows["easy"]["pictures"], rows["medium"]["pictures"]) == (2, 1)
    with pytest.raises(EvaluationError, match="picture 1 has no crowdIndex"):
        crowd_figures([image(1)], [answer(1, joints=14)], joints)


def test_crowdposes_oks_takes_half_of_the_box_as_area() -> None:
    # All joints 12 pixels off; box 100 x 200, so area 0.53 * 20000. The reader gives that area (test_readers).
    joints = join_joints(CROWDPOSE14, CROWDPOSE14)
    truth = pose(0, CROWDPOSE14)
    area = 0.53 * 20000
    oks = np.mean([exp(-144 / (2 * area * (2 * s) ** 2)) for s in CROWDPOSE14.sigmas])
    figures = keypoint_figures(
        [image(1, person(truth, area=area))], [answer(1, [shifted(truth, 12.0)], [0.9], joints=14)], joints
    ).figures
    assert figures["AP"] == pytest.approx(sum(oks > t for t in np.linspace(0.5, 0.95, 10)) / 10)
    assert sqrt(area) == pytest.approx(102.96, abs=0.01)
