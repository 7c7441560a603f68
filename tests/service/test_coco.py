"""The JSON: what people feed into pycocotools, and what programs read."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from service import coco
from service.people import People, PosedPicture
from service.skeletons import COCO17, LSP14, Skeleton


def people(count: int, skeleton: Skeleton = COCO17, seed: int = 0) -> People:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 300, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(20, 200, (count, 2))], 1)
    joints = np.concatenate(
        [boxes[:, None, :2] + rng.uniform(0, 100, (count, len(skeleton), 2)), rng.random((count, len(skeleton), 1))], -1
    )
    scores = np.sort(rng.random(count))[::-1]
    return People(boxes, rng.random(count), joints, scores)


PICTURES = [
    PosedPicture(7, 640, 480, people(3)),
    PosedPicture(9, 320, 200, people(0)),
    PosedPicture(12, 50, 60, people(2)),
]


def document(threshold: float = 0.5) -> dict[str, object]:
    text = coco.encode(coco.document(PICTURES, COCO17, threshold, {"model": "pose"}))
    return json.loads(text)


def test_document_keeps_every_joint_and_marks_the_sure_ones() -> None:
    parsed = document()
    assert [image["id"] for image in parsed["images"]] == [7, 9, 12]
    assert parsed["images"][0] == {"id": 7, "width": 640, "height": 480}
    assert [one["id"] for one in parsed["annotations"]] == [1, 2, 3, 4, 5]
    assert [one["image_id"] for one in parsed["annotations"]] == [7, 7, 7, 12, 12]
    for one, index in zip(parsed["annotations"], [0, 1, 2, 0, 1], strict=True):
        truth = PICTURES[0 if one["image_id"] == 7 else 2].people
        joints = np.array(one["keypoints"]).reshape(-1, 3)
        assert joints.shape == (17, 3)
        assert np.abs(joints[:, :2] - truth.keypoints[index, :, :2]).max() <= 0.005
        assert np.allclose(one["keypoint_scores"], truth.keypoints[index, :, 2], atol=5e-5)
        assert joints[:, 2].tolist() == [2 if score >= 0.5 else 1 for score in one["keypoint_scores"]]
        assert all(isinstance(v, int) for v in one["keypoints"][2::3])
        assert one["num_keypoints"] == (joints[:, 2] == 2).sum()
        x1, y1, x2, y2 = truth.boxes[index]
        assert np.allclose(one["bbox"], [x1, y1, x2 - x1, y2 - y1], atol=0.006)
        assert one["area"] == pytest.approx((x2 - x1) * (y2 - y1), abs=0.006)
        assert one["score"] == pytest.approx(truth.scores[index], abs=1e-6)
        assert one["box_score"] == pytest.approx(truth.box_scores[index], abs=1e-6)
        assert (one["category_id"], one["iscrowd"]) == (1, 0)


def test_categories_are_cocos_with_edges_from_one() -> None:
    (person,) = document()["categories"]
    assert person["keypoints"][0] == "nose"
    assert {k for edge in person["skeleton"] for k in edge} == set(range(1, 18))
    assert (person["id"], person["name"]) == (1, "person")


def truth_file() -> COCO:
    truth = COCO()
    truth.dataset = {**document(0.0), "info": {}}
    truth.createIndex()
    return truth


def test_results_go_through_pycocotools_unchanged() -> None:
    """People who evaluate with the official tool must get AP 1 for answering the truth."""
    truth = truth_file()
    found = truth.loadRes(json.loads(coco.encode(coco.results(PICTURES))))
    evaluation = COCOeval(truth, found, "keypoints")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)
    assert "bbox" not in coco.results(PICTURES)[0]


def test_annotations_go_through_pycocotools_too() -> None:
    found = truth_file().loadRes(document()["annotations"])
    assert len(found.getAnnIds()) == 5


def test_other_skeletons_have_their_own_number_of_joints() -> None:
    picture = PosedPicture(1, 100, 100, people(2, LSP14))
    assert len(coco.results([picture])[0]["keypoints"]) == 14 * 3
    parsed = coco.document([picture], LSP14, 0.5, {})
    assert parsed["categories"][0]["keypoints"][-1] == "head_top"


def test_nobody_is_empty_lists() -> None:
    nobody = [PosedPicture(1, 10, 10, People.nobody(17))]
    assert coco.results(nobody) == []
    assert coco.document(nobody, COCO17, 0.5, {})["annotations"] == []
