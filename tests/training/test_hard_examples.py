"""If these fail, external data brings in people the network knows already, or the wrong ones."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from typer.testing import CliRunner

from service.skeletons import AIC14, COCO17
from training.__main__ import app
from training.datasets.coco import CocoSet, DatasetError, ImageRecord, PersonRecord
from training.hard_examples import CropPoser, hard_people, judge_people
from training.recipe import DataSource
from training.selection import PeopleChoice

SIZE = (48, 64)
PADDING = 1.25


def _poser(skeleton=COCO17) -> CropPoser:  # type: ignore[no-untyped-def]
    """A network that puts every joint on the brightest pixel of its crop."""

    def pose(crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        assert crops.shape[1:] == (64, 48, 3)
        peaks = crops[..., 0].reshape(len(crops), -1).argmax(1)
        points = np.stack([peaks % 48, peaks // 48, np.ones(len(crops))], 1)
        return np.repeat(points[:, None], len(skeleton), axis=1)

    return CropPoser(skeleton, SIZE, pose)


def _data(folder: Path, distances: list[float], skeleton=COCO17) -> CocoSet:  # type: ignore[no-untyped-def]
    """One picture for each person: a white dot in the middle of a 48 x 64 box, the labels so far to its right."""
    images = []
    for number, distance in enumerate(distances, start=1):
        picture = np.zeros((200, 200, 3), np.uint8)
        picture[90, 100] = 255
        path = folder / f"{number}.png"
        cv2.imwrite(str(path), picture)
        # The dot is a point: the box around it in edge coordinates is half a pixel further.
        box = np.array([100.5 - 24 / PADDING, 90.5 - 32 / PADDING, 100.5 + 24 / PADDING, 90.5 + 32 / PADDING])
        keypoints = np.zeros((len(skeleton), 3))
        keypoints[:, :2] = [100 + distance, 90]
        keypoints[5:, 2] = 2
        person = PersonRecord(10 * number, box, keypoints, 400.0, False, ())
        images.append(ImageRecord(number, path, 200, 200, True, (person,)))
    return CocoSet("dots", skeleton, tuple(images))


def test_similarities_are_oks_in_picture_pixels_and_the_low_ones_are_hard(tmp_path: Path) -> None:
    distances = [0.0, 3.0, 9.0]
    found = judge_people(_poser(), _data(tmp_path, distances), PeopleChoice())
    sigmas = np.array(COCO17.sigmas[5:])
    for number, distance in enumerate(distances, start=1):
        # The crop's middle is between pixels: the dot is found at most a pixel off.
        bounds = [
            np.exp(-((max(d, 0)) ** 2) / (2 * 400 * (2 * sigmas) ** 2)).mean() for d in (distance + 1, distance - 1)
        ]
        assert bounds[0] <= found[10 * number] <= bounds[1]
    assert hard_people(found, 0.3) == [30]
    assert hard_people(found, 0.0) == []
    assert hard_people(found, 1.1) == [10, 20, 30]


def test_more_people_than_one_forward_pass(tmp_path: Path) -> None:
    data = _data(tmp_path, [0.0])
    person = data.images[0].people[0]
    people = tuple(
        PersonRecord(k, person.box, person.keypoints + [[k % 5 * 4, 0, 0]] * 17, 400.0, False, ()) for k in range(150)
    )
    image = ImageRecord(1, data.images[0].path, 200, 200, True, people)
    found = judge_people(_poser(), CocoSet("dots", COCO17, (image,)), PeopleChoice())
    assert sorted(found) == list(range(150))
    for k in range(150):
        assert found[k] == pytest.approx(found[k % 5])
    assert found[0] > found[1] > found[2] > found[3] > found[4]


def test_only_joints_that_were_trained_are_judged(tmp_path: Path) -> None:
    data = _data(tmp_path, [0.0], AIC14)
    person = data.images[0].people[0]
    person.keypoints[12:, 0] += 90  # head top and neck far off: no joint of COCO
    alone = judge_people(_poser(AIC14), data, PeopleChoice(joints=frozenset(COCO17.joints)))
    assert alone[10] > 0.95
    assert judge_people(_poser(AIC14), data, PeopleChoice())[10] < 0.9
    assert judge_people(_poser(AIC14), data, PeopleChoice(), min_joints=10) == {}


def test_a_missing_picture_is_named(tmp_path: Path) -> None:
    data = _data(tmp_path, [0.0])
    data.images[0].path.unlink()
    with pytest.raises(DatasetError, match=r"1\.png: missing"):
        judge_people(_poser(), data, PeopleChoice())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network of the smallest kind, as training writes it."""
    from training.pose import PoseRecipe, build_pose_network

    torch.manual_seed(0)
    recipe = PoseRecipe.model_validate({
        "data": [{"annotations": "a.json", "images": "a"}], "skeleton": "coco17", "width": 64, "height": 64,
        "network": {"name": "hourglass", "stacks": 1, "width": 8}, "steps": 1,
        "radii": [{"name": "one", "kind": "softmax", "sigma": 2.0, "weight": 1.0}],
    })  # fmt: skip
    path = tmp_path_factory.mktemp("run") / "model.pt"
    network = build_pose_network(recipe)
    torch.save({"kind": "pose", "recipe": recipe.model_dump(mode="json"), "weights": network.state_dict()}, path)
    return path


def test_the_command_writes_what_a_recipe_keeps(rendered_data: Path, checkpoint: Path, tmp_path: Path) -> None:
    from training.datasets import read_set
    from training.datasets.union import pose_samples

    output = tmp_path / "lists" / "keep.json"
    data = ["--annotations", str(rendered_data / "annotations.json"), "--images", str(rendered_data / "images")]
    arguments = ["select-hard", "--checkpoint", str(checkpoint), "--output", str(output), *data]
    answer = CliRunner().invoke(app, [*arguments, "--below", "0.3"])
    assert answer.exit_code == 0, answer.output
    chosen = json.loads(output.read_text())
    assert f"{len(chosen)} of " in answer.output
    source = DataSource(annotations=rendered_data / "annotations.json", images=rendered_data / "images", keep=output)
    samples, _, _ = pose_samples([read_set(source)], COCO17, min_joints=1, holdout=0)
    assert sorted(s.id for s in samples) == chosen
    for wrong, message in ((["--format", "voc"], "--format voc"), (["--common-with", "dog"], "--common-with dog")):
        refused = CliRunner().invoke(app, [*arguments, *wrong])
        assert refused.exit_code == 1
        assert message in refused.output


def test_the_count_of_data_selection_is_printed(tmp_path: Path) -> None:
    box = [0, 0, 75, 100]
    annotations = [
        {"id": k, "image_id": 1, "category_id": 1, "bbox": box, "keypoints": [37, y, 2] * 17}
        for k, y in ((1, 50), (2, 97))
    ]
    path = tmp_path / "set.json"
    path.write_text(json.dumps({
        "images": [{"id": 1, "file_name": "1.jpg", "width": 100, "height": 100}], "annotations": annotations,
        "categories": [{"id": 1, "name": "person", "keypoints": COCO17.joints}],
    }))  # fmt: skip
    arguments = ["select-data", "--annotations", str(path), "--images", str(tmp_path)]
    answer = CliRunner().invoke(app, [*arguments, "--json"])
    figures = json.loads(answer.output)
    assert {rule: row["left_out"] for rule, row in figures.items()} == {"slides": 0, "hrnet": 1}
    assert "50.0 %" in CliRunner().invoke(app, arguments).output
