"""If these failed, the figures that a release is judged by would be wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from service.people import People
from service.skeletons import COCO17, LSP14, UNION19, Skeleton
from training.answers import EvaluationError, PictureAnswer
from training.datasets.coco import ImageRecord, PersonRecord
from training.metrics.coco import Ranking, box_figures, join_joints, keypoint_figures, keypoint_results

BOX = (20.0, 30.0, 120.0, 230.0)
AREA = 10_000.0


def pose(seed: int = 0, skeleton: Skeleton = COCO17) -> np.ndarray:
    """[K, 3] joints spread over BOX, all visible."""
    points = np.random.default_rng(seed).uniform(BOX[:2], BOX[2:], (len(skeleton), 2))
    return np.concatenate([points, np.full((len(skeleton), 1), 2.0)], 1)


def person(keypoints: np.ndarray, *, crowd: bool = False, area: float = AREA, box: Sequence[float] = BOX):
    return PersonRecord(0, np.array(box), keypoints, area, crowd, ())


def image(number: int, *people: PersonRecord) -> ImageRecord:
    return ImageRecord(number, Path(f"{number}.jpg"), 640, 480, True, people)


def answer(number: int, keypoints: Sequence[np.ndarray] = (), scores: Sequence[float] = (), joints: int = 17,
           boxes: Sequence[Sequence[float]] | None = None) -> PictureAnswer:  # fmt: skip
    found = np.array(keypoints).reshape(-1, joints, 3)
    boxes = [BOX] * len(found) if boxes is None else boxes
    return PictureAnswer(
        number, 640, 480, People(np.array(boxes, float).reshape(-1, 4), np.array(scores), found, np.array(scores)), 0.0
    )


def shifted(keypoints: np.ndarray, distance: float) -> np.ndarray:
    return keypoints + np.array([0.6 * distance, 0.8 * distance, 0])


SAME = join_joints(COCO17, COCO17)


def test_a_perfect_answer_scores_one_in_all_ten_figures() -> None:
    # One medium and one large person: every size has somebody.
    people = [person(pose(1), area=50.0**2), person(pose(2))]
    figures = keypoint_figures(
        [image(1, *people)], [answer(1, [pose(1), pose(2)], [0.9, 0.8])], SAME
    ).figures  # fmt: skip
    assert list(figures) == ["AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL"]
    assert figures == pytest.approx(dict.fromkeys(figures, 1.0))


@pytest.mark.parametrize(("wanted", "hits"), [(0.97, 10), (0.72, 5), (0.52, 1), (0.48, 0)])
def test_a_shift_gives_the_oks_of_its_closed_form(wanted: float, hits: int) -> None:
    # With one labelled joint OKS = exp(-d^2 / (2 area (2 sigma)^2)); AP averages over thresholds .50 to .95.
    labels = pose()
    labels[:, 2] = 0
    labels[9, 2] = 2
    sigma = 0.062
    distance = np.sqrt(-2 * AREA * (2 * sigma) ** 2 * np.log(wanted))
    truth, given = [image(1, person(labels))], [answer(1, [shifted(pose(), distance)], [0.5])]
    figures = keypoint_figures(truth, given, SAME).figures
    assert figures["AP"] == pytest.approx(hits / 10)
    assert figures["AP50"] == pytest.approx(float(wanted > 0.5))
    assert figures["AP75"] == pytest.approx(float(wanted > 0.75))


def test_joints_are_joined_by_name_with_the_data_sets_constants() -> None:
    joined = join_joints(LSP14, COCO17)
    assert joined.left_out == ("neck", "head_top")
    assert len(joined.names) == 12
    for name, sigma, here, there in zip(joined.names, joined.sigmas, joined.in_truth, joined.in_answer, strict=True):
        assert LSP14.joints[here] == COCO17.joints[there] == name
        assert sigma == LSP14.sigmas[here]
    with pytest.raises(EvaluationError, match="no joint in common"):
        join_joints(LSP14, Skeleton("face", ("nose",), (), (0.026,)))


def test_an_answer_in_another_skeleton_is_measured_on_the_shared_joints() -> None:
    union = pose(3, UNION19)
    labels = union[[UNION19.joints.index(joint) for joint in LSP14.joints]]
    joined = join_joints(LSP14, UNION19)
    assert not joined.left_out
    given = [answer(1, [union], [0.5], joints=19)]
    assert keypoint_figures([image(1, person(labels))], given, joined).figures["AP"] == pytest.approx(1)
    # COCO-17 lacks head top and neck: wrong labels there change nothing, and a person with only those is ignored.
    labels[[12, 13], :2] += 500
    only_head = labels.copy()
    only_head[:12, 2] = 0
    truth = [image(1, person(labels), person(only_head))]
    figures = keypoint_figures(truth, [answer(1, [union[:17]], [0.5])], join_joints(LSP14, COCO17)).figures
    assert (figures["AP"], figures["AR"]) == pytest.approx((1, 1))


def test_box_ap_of_a_case_worked_out_by_hand() -> None:
    # Three people; hits at ranks 1, 3 and 4, a false box at rank 2. Precision 1 up to recall 1/3, then 3/4:
    # of the recalls 0, 0.01 .. 1 the first 34 see the former.
    truth = [image(number, person(pose())) for number in (5, 6, 7)]
    far = (400.0, 300.0, 500.0, 400.0)
    answers = [
        answer(5, [pose(), pose()], [0.9, 0.8], boxes=[BOX, far]),
        answer(6, [pose()], [0.7]),
        answer(7, [pose()], [0.6]),
    ]
    figures = box_figures(truth, answers).figures
    by_hand = (34 + 67 * 0.75) / 101
    assert (figures["AP"], figures["AP50"]) == pytest.approx((by_hand, by_hand))
    assert figures["AR"] == 1
    assert figures["APs"] is None  # nobody is that small
    assert figures["APl"] == pytest.approx(by_hand)


def test_boxes_are_ranked_by_box_score_and_poses_by_person_score() -> None:
    truth = [image(1, person(pose()))]
    far = (400.0, 300.0, 500.0, 400.0)
    wrong = shifted(pose(), 300)
    given = answer(1, [pose(), wrong], [0.9, 0.2], boxes=[BOX, far])
    doubted = dataclasses.replace(given, people=dataclasses.replace(given.people, box_scores=np.array([0.3, 0.4])))
    assert keypoint_figures(truth, [doubted], SAME).figures["AP"] == pytest.approx(1)
    assert box_figures(truth, [doubted]).figures["AP"] == pytest.approx(0.5)


def test_crowds_and_people_without_joints_are_ignored_not_missed() -> None:
    nothing = np.zeros((17, 3))
    crowd = person(nothing, crowd=True, box=(300, 100, 600, 400), area=90_000)
    silent = person(nothing, box=(200, 100, 260, 300), area=6_000)
    truth = [image(1, person(pose()), crowd, silent)]
    in_crowd = pose() + np.array([320, 100, 0])
    given = [answer(1, [in_crowd, pose()], [0.9, 0.8], boxes=[(320, 130, 420, 330), BOX])]
    assert keypoint_figures(truth, given, SAME).figures["AP"] == pytest.approx(1)
    figures = box_figures(truth, given).figures
    assert figures["AR"] == pytest.approx(0.5)  # for boxes, the person without joints is to be found
    assert figures["AP"] == pytest.approx(51 / 101)


def test_nobody_answered_is_zero_and_nobody_there_is_no_figure() -> None:
    truth = [image(1, person(pose()))]
    assert keypoint_figures(truth, [answer(1)], SAME).figures["AP"] == 0
    assert box_figures(truth, [answer(1)]).figures["AP50"] == 0
    empty = keypoint_figures([image(1)], [answer(1, [pose()], [0.5])], SAME)
    assert empty.figures["AP"] is None
    assert empty.ranking.spread(20, np.random.default_rng(0)) is None


def random_case(rng: np.random.Generator, pictures: int) -> tuple[list[ImageRecord], list[PictureAnswer]]:
    images, answers = [], []
    for number in range(pictures):
        labels = [pose(int(rng.integers(1 << 30))) for _ in range(rng.integers(0, 4))]
        found = [shifted(keypoints, rng.exponential(15)) for keypoints in labels if rng.random() < 0.8]
        found += [pose(int(rng.integers(1 << 30))) for _ in range(rng.integers(0, 3))]
        crowds = rng.random(len(labels)) < 0.2
        images.append(image(number, *(person(k, crowd=bool(c)) for k, c in zip(labels, crowds, strict=True))))
        # Few different scores: ties between pictures must be broken alike.
        answers.append(answer(number, found, rng.permutation(6)[: len(found)] / 6))
    return images, answers


@pytest.mark.parametrize("seed", range(5))
def test_the_bootstraps_ap_is_pycocotools_ap_of_the_repeated_pictures(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images, answers = random_case(rng, 12)
    whole = keypoint_figures(images, answers, SAME)
    assert whole.ranking.precision().mean() == pytest.approx(whole.figures["AP"], abs=1e-12)
    counts = np.bincount(rng.integers(0, 12, 12), minlength=12)
    repeated = [k for k, count in enumerate(counts) for _ in range(count)]
    copies = [dataclasses.replace(images[k], id=1000 + place) for place, k in enumerate(repeated)]
    again = [dataclasses.replace(answers[k], id=1000 + place) for place, k in enumerate(repeated)]
    expected = keypoint_figures(copies, again, SAME).figures
    precision = whole.ranking.precision(counts)
    assert precision.mean() == pytest.approx(expected["AP"], abs=1e-12)
    assert precision[0] == pytest.approx(expected["AP50"], abs=1e-12)


def test_the_spread_of_many_pictures_is_that_of_repeated_measurements() -> None:
    # One person in each picture, found with probability 0.7 and the best score: AP is then nearly the share found,
    # whose standard deviation is sqrt(p (1 - p) / n).
    rng = np.random.default_rng(0)
    found = rng.random(400) < 0.7
    hits = np.flatnonzero(found)
    ranking = Ranking(hits, np.ones((10, len(hits)), bool), np.zeros((10, len(hits)), bool), np.ones(400, np.intp))
    spread = ranking.spread(400, rng)
    assert spread is not None
    assert spread["AP"] == pytest.approx(np.sqrt(0.7 * 0.3 / 400), rel=0.15)


def test_the_results_list_goes_through_loadres_with_scores_as_third_values() -> None:
    keypoints = pose()
    keypoints[:, 2] = 0.25
    (entry,) = keypoint_results([answer(7, [keypoints], [0.5])], SAME)
    assert (entry["image_id"], entry["category_id"], entry["score"]) == (7, 1, 0.5)
    assert entry["keypoints"] == keypoints.ravel().tolist()
