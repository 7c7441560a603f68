"""If these fail, a network is taught its own guesses as if they were labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from service.errors import InferenceFailed
from service.options import PoseOptions
from service.settings import Settings
from service.skeletons import COCO17, UNION19, Skeleton, make_skeleton
from service.suppression import iou_matrix
from tests.service.marked_people import SKELETON, Card, card_engine, encode, paint
from training.__main__ import app
from training.answers import InProcess, Question, find_model
from training.datasets import read_set
from training.datasets.coco import DatasetError
from training.datasets.union import pose_samples
from training.pseudo_label import (
    PseudoLabelRule,
    PseudoLabels,
    agreed_joints,
    label_pictures,
    list_pictures,
    mirror_boxes,
    mirror_keypoints,
)
from training.recipe import DataSource

RULE = PseudoLabelRule(joint_score=0.5, agreement=0.7, box_score=0.3, min_joints=1)
BOX = np.array([[0.0, 0, 100, 200]])


def _answer(scores: float = 0.9) -> np.ndarray:
    points = np.random.default_rng(0).uniform(10, 90, (1, 17, 2))
    return np.concatenate([points, np.full((1, 17, 1), scores)], 2)


@pytest.mark.parametrize(("part", "kept"), [(0.99, True), (1.01, False)])
def test_a_joint_agrees_as_far_as_its_sigma_and_the_person_allow(part: float, kept: bool) -> None:
    # exp(-d^2 / (2 * area * (2 sigma)^2)) = 0.7 with area 0.53 * 20000.
    first, second = _answer(), _answer()
    farthest = np.sqrt(-np.log(0.7) * 2 * 0.53 * 20000) * 2 * np.array(COCO17.sigmas)
    second[0, :, 0] += part * farthest
    agreed = agreed_joints(first, second, BOX, COCO17, RULE)
    assert (agreed[0, :, 2] > 0).tolist() == [kept] * 17
    if kept:
        np.testing.assert_allclose(agreed[0, :, 0], first[0, :, 0] + part * farthest / 2)


def test_both_scores_must_reach_the_bound_and_the_lower_one_is_kept() -> None:
    first, second = _answer(0.9), _answer(0.9)
    second[0, 3, 2], first[0, 5, 2], second[0, 7, 2] = 0.49, 0.49, 0.6
    agreed = agreed_joints(first, second, BOX, COCO17, RULE)
    assert np.flatnonzero(agreed[0, :, 2] == 0).tolist() == [3, 5]
    assert not agreed[0, 3].any()
    assert agreed[0, 7, 2] == 0.6


def test_mirroring_twice_changes_nothing_and_once_changes_sides() -> None:
    keypoints = _answer()
    mirrored = mirror_keypoints(keypoints, 100, COCO17)
    left, right = COCO17.joints.index("left_wrist"), COCO17.joints.index("right_wrist")
    assert mirrored[0, left, 0] == 99 - keypoints[0, right, 0]
    np.testing.assert_allclose(mirror_keypoints(mirrored, 100, COCO17), keypoints)
    assert mirror_boxes(np.array([[10.0, 20, 30, 40]]), 100).tolist() == [[70, 20, 90, 40]]


async def _label(folder: Path, skeleton: Skeleton, rule: PseudoLabelRule = RULE, **engine: Any) -> PseudoLabels:
    async with InProcess(Settings(cpu_threads=2), card_engine(skeleton=skeleton.to_json(), **engine)) as service:
        facts = await find_model(service, "pose")
        options = PoseOptions(box_threshold=rule.box_score)
        return await label_pictures(service, folder, list_pictures(folder), facts.skeleton, options, rule)


CARDS = (Card(30, 40, 60, 120, 0.9), Card(180, 60, 72, 144, 0.8), Card(100, 150, 36, 72, 0.2))


async def test_joints_that_the_mirror_image_confirms_are_labelled_in_their_place(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "cards.png").write_bytes(encode(paint(CARDS)))
    (tmp_path / "a.png").write_bytes(encode(paint(())))
    # Joints without a left or right: the card engine finds them by colour in the mirror image too.
    labels = await _label(tmp_path, make_skeleton("card3", ("nose", "head_top", "neck"), ()))
    assert [image["file_name"] for image in labels.document["images"]] == ["a.png", "b/cards.png"]
    assert not any(image["all_people_labelled"] for image in labels.document["images"])
    people = sorted(labels.document["annotations"], key=lambda person: person["bbox"][0])
    assert (labels.people, labels.labelled_people, labels.labelled_joints) == (2, 2, 6)
    for person, card in zip(people, CARDS, strict=False):  # the third is under the box score
        found = np.reshape(person["keypoints"], (3, 3))
        np.testing.assert_allclose(found[:, :2], card.points, atol=4)
        assert found[:, 2].tolist() == [2, 2, 2]
        assert (person["pseudo"], person["num_keypoints"], person["image_id"]) == (True, 3, 2)
        assert person["area"] == pytest.approx(0.53 * card.width * card.height, rel=0.05)
        assert min(person["keypoint_scores"]) >= 0.5


async def test_a_network_that_tells_no_left_from_right_labels_no_wrists(tmp_path: Path) -> None:
    # By colour, the left wrist of the mirror image is the left wrist again: mirrored back it is the right one.
    (tmp_path / "cards.png").write_bytes(encode(paint(CARDS)))
    labels = await _label(tmp_path, SKELETON)
    for person in labels.document["annotations"]:
        assert np.reshape(person["keypoints"], (3, 3))[:, 2].tolist() == [2, 0, 0]
    assert labels.labelled_joints == 2
    strict = await _label(tmp_path, SKELETON, RULE.model_copy(update={"min_joints": 2}))
    assert (strict.people, strict.labelled_people) == (2, 0)


async def test_what_is_no_picture_is_left_out_and_named_and_a_failing_engine_ends_it(tmp_path: Path) -> None:
    (tmp_path / "cards.png").write_bytes(encode(paint(CARDS)))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    labels = await _label(tmp_path, SKELETON)
    assert list(labels.unusable) == ["broken.jpg"]
    assert [image["file_name"] for image in labels.document["images"]] == ["cards.png"]
    with pytest.raises(DatasetError, match="no pictures"):
        list_pictures(tmp_path / "nothing")
    with pytest.raises(ValidationError):
        PseudoLabelRule(agreement=0)


class _Disturbed(InProcess):
    """The served pipeline, with one joint of every mirror image put elsewhere."""

    joint = -1

    def __init__(self) -> None:
        super().__init__(Settings(cpu_threads=2, threads=1))

    async def ask(self, question: Question, data: bytes, options: PoseOptions) -> dict[str, Any]:
        document = await super().ask(question, data, options)
        if question.boxes is not None and self.joint >= 0:
            for person in document["annotations"]:
                person["keypoints"][3 * self.joint] += person["bbox"][3]
        return document


@pytest.mark.slow
async def test_served_networks_label_photographs_where_they_are_sure(photographs: Path, tmp_path: Path) -> None:
    for number in range(1001, 1400, 60):
        name = f"im{number:04d}.jpg"
        (tmp_path / name).write_bytes((photographs / "lsp_val" / name).read_bytes())
    rule = PseudoLabelRule(joint_score=0.4, agreement=0.7, box_score=0.3, min_joints=1)
    pictures, options = list_pictures(tmp_path), PoseOptions(box_threshold=0.3)
    found = []
    async with _Disturbed() as service:
        facts = await find_model(service, "pose")
        # The mirror image's right wrist is the left one.
        for joint in (-1, COCO17.joints.index("right_wrist")):
            service.joint = joint
            found.append(await label_pictures(service, tmp_path, pictures, facts.skeleton, options, rule))
    wrist = COCO17.joints.index("left_wrist")
    kept, lost = (
        {(p["image_id"], *p["bbox"]): np.reshape(p["keypoints"], (17, 3)) for p in labels.document["annotations"]}
        for labels in found
    )
    assert sum(joints[wrist, 2] > 0 for joints in kept.values()) >= 2
    assert not any(joints[wrist, 2] > 0 for joints in lost.values())
    for place, joints in lost.items():  # nothing else has changed
        np.testing.assert_array_equal(np.delete(joints, wrist, 0), np.delete(kept[place], wrist, 0))
    near = _near_the_truth(photographs, found[0])
    assert len(near) > 20
    # Of all 1,386 joints of every tenth picture 68 % lay within a fifth of the torso, of those kept 87 %.
    assert np.mean(near) > 0.8


def _near_the_truth(photographs: Path, labels: PseudoLabels) -> list[bool]:
    """Whether each labelled joint of the people whom LSP labels lies within half a torso of LSP's place."""
    truth = read_set(DataSource(annotations=photographs / "lsp_val.json", images=photographs / "lsp_val"))
    people = {image.path.name: image.people[0] for image in truth.images}
    names = {image["id"]: image["file_name"] for image in labels.document["images"]}
    places = COCO17.indices_in(truth.skeleton)
    near = []
    for entry in labels.document["annotations"]:
        person = people[names[entry["image_id"]]]
        x, y, w, h = entry["bbox"]
        if iou_matrix(person.box[None], np.array([[x, y, x + w, y + h]]))[0, 0] < 0.6:
            continue  # somebody else in the picture
        torso = np.linalg.norm(person.keypoints[9, :2] - person.keypoints[2, :2])
        for place, (px, py, v) in zip(places, np.reshape(entry["keypoints"], (17, 3)), strict=True):
            if v > 0 and place >= 0:
                near.append(bool(np.hypot(*(person.keypoints[place, :2] - (px, py))) < 0.5 * torso))
    return near


def test_pseudo_labels_are_a_data_set_that_counts_less(photographs: Path, tmp_path: Path) -> None:
    pictures, output = tmp_path / "pictures", tmp_path / "labels" / "pseudo.json"
    pictures.mkdir()
    for number in (1001, 1041):
        (pictures / f"{number}.jpg").write_bytes((photographs / "lsp_val" / f"im{number}.jpg").read_bytes())
    (pictures / "broken.png").write_bytes(b"")
    bounds = ["--joint-score", "0.1", "--agreement", "0.1", "--box-score", "0.2", "--min-joints", "3"]
    answer = CliRunner().invoke(app, ["pseudo-label", "--images", str(pictures), "--output", str(output), *bounds])
    assert answer.exit_code == 0, answer.output
    assert "left out broken.png" in answer.output
    assert json.loads(output.read_text())["info"]["agreement"] == 0.1
    source = DataSource(annotations=output, images=pictures, weight=0.5)
    samples, _, _ = pose_samples([read_set(source)], UNION19, min_joints=3, holdout=0)
    assert {sample.weight for sample in samples} == {0.5}
    assert {sample.path.name for sample in samples} <= {"1001.jpg", "1041.jpg"}
    refused = CliRunner().invoke(app, ["pseudo-label", "--images", str(tmp_path / "labels"), "--output", str(output)])
    assert refused.exit_code == 1
    assert "no pictures" in refused.output


async def test_an_engine_that_fails_is_no_matter_of_one_picture(tmp_path: Path) -> None:
    (tmp_path / "cards.png").write_bytes(encode(paint(CARDS)))
    cv2.imwrite(str(tmp_path / "other.png"), paint(()))
    service = InProcess(Settings(cpu_threads=2), card_engine())

    async def fail(*_: object) -> dict[str, Any]:
        raise InferenceFailed("the engine is gone")

    service.ask = fail  # type: ignore[method-assign, assignment]
    with pytest.raises(InferenceFailed, match="gone"):
        await label_pictures(service, tmp_path, list_pictures(tmp_path), SKELETON, PoseOptions(), RULE)
