"""Comparing answers: a load test that lets a wrong answer pass, or calls a right one wrong, is worth nothing."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from loadtest.agreement import Recall, disagreement, recall
from service.scenes import Scene, coco_category, render_scene
from service.skeletons import COCO17


@pytest.fixture(scope="module")
def scene() -> Scene:
    return render_scene(3, people=4, stature=(0.4, 0.7), skeleton=COCO17)


@pytest.fixture
def document(scene: Scene) -> dict[str, Any]:
    """The truth, as the service would write it."""
    annotations = [
        {
            "id": number,
            "image_id": 1,
            "category_id": 1,
            "keypoints": person.keypoints.ravel().tolist(),
            "keypoint_scores": [0.9] * 17,
            "score": 0.9 - 0.1 * number,
        }
        for number, person in enumerate(scene.people, start=1)
    ]
    images = [{"id": 1, "width": 640, "height": 480}]
    return {"info": {}, "images": images, "annotations": annotations, "categories": [coco_category(COCO17)]}


def test_the_same_answer_agrees(document: dict[str, Any]) -> None:
    assert disagreement(document, copy.deepcopy(document)) is None
    assert disagreement([], []) is None


def test_rounding_agrees_and_more_does_not(document: dict[str, Any]) -> None:
    for pixels, score, agrees in ((0.4, 0.0, True), (0.6, 0.0, False), (0.0, 0.009, True), (0.0, 0.02, False)):
        other = copy.deepcopy(document)
        other["annotations"][1]["keypoints"][4] += pixels
        other["annotations"][1]["score"] += score
        assert (disagreement(document, other) is None) == agrees, (pixels, score)


def test_a_joint_score_that_moved_is_seen(document: dict[str, Any]) -> None:
    other = copy.deepcopy(document)
    other["annotations"][0]["keypoint_scores"][3] = 0.5
    assert "score" in (disagreement(document, other) or "")


def test_people_may_change_places_but_not_go_missing_or_be_doubled(document: dict[str, Any]) -> None:
    swapped = copy.deepcopy(document)
    swapped["annotations"].reverse()
    assert disagreement(document, swapped) is None
    fewer = copy.deepcopy(document)
    del fewer["annotations"][0]
    assert disagreement(document, fewer) == "expected 4 people, got 3"
    doubled = copy.deepcopy(document)
    doubled["annotations"][0] = copy.deepcopy(doubled["annotations"][1])
    assert disagreement(document, doubled)


def test_another_picture_another_shape_and_broken_numbers_are_seen(document: dict[str, Any]) -> None:
    turned = copy.deepcopy(document)
    turned["images"][0]["width"] = 480
    assert "images" in (disagreement(document, turned) or "")
    assert "list" in (disagreement(document, []) or "")
    broken = copy.deepcopy(document)
    broken["annotations"][2]["keypoints"][0] = float("nan")
    assert "not finite" in (disagreement(document, broken) or "")
    short = copy.deepcopy(document)
    short["annotations"][2]["keypoints"] = short["annotations"][2]["keypoints"][:-3]
    assert "16 joints instead of 17" in (disagreement(document, short) or "")
    misplaced = copy.deepcopy(document)
    misplaced["annotations"][2]["image_id"] = 2
    assert "image_id" in (disagreement(document, misplaced) or "")


def test_recall_of_the_truth_is_whole_and_of_nobody_nothing(scene: Scene, document: dict[str, Any]) -> None:
    whole = recall(scene, document)
    assert whole.known == whole.found >= 2
    assert recall(scene, {**document, "annotations": []}) == Recall(whole.known, 0)
    assert str(Recall(20, 17)) == "17 of 20 people (85%)"
    assert str(Recall()) == "0 of 0 people"


def test_recall_joins_joints_by_name(scene: Scene, document: dict[str, Any]) -> None:
    """A model that answers the same joints in another order, and one unknown joint, finds the same people."""
    shuffled = copy.deepcopy(document)
    order = np.random.default_rng(0).permutation(17)
    shuffled["categories"][0]["keypoints"] = [COCO17.joints[k] for k in order] + ["tail"]
    for person in shuffled["annotations"]:
        joints = np.array(person["keypoints"]).reshape(-1, 3)[order]
        person["keypoints"] = np.concatenate([joints, [[5, 5, 2]]]).ravel().tolist()
    assert recall(scene, shuffled) == recall(scene, document)


def test_a_person_far_off_is_not_found(scene: Scene, document: dict[str, Any]) -> None:
    for person in document["annotations"]:
        shift = np.array([300, 0, 0])
        person["keypoints"] = (np.array(person["keypoints"]).reshape(-1, 3) + shift).ravel().tolist()
    assert recall(scene, document).found == 0
