"""If these fail, the pose network is taught that people are nobody, or learns nothing from the detector's mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from service import engine_choice
from tests.service.marked_people import SKELETON, Card, card_engine, encode, paint
from training.__main__ import app
from training.datasets.coco import CocoSet, ImageRecord, PersonRecord, read_coco
from training.datasets.union import pose_samples
from training.negatives import MiningRule, as_coco, holds_nobody, looks_like_measuring, mine_negatives
from training.recipe import DataSource

PERSON, STATUE = Card(20, 30, 60, 120, 0.9), Card(200, 60, 80, 140, 0.7)


def annotation(number: int, image: int, card: Card, **more: Any) -> dict[str, Any]:
    joints = [float(v) for x, y in card.points for v in (x, y, 2)]
    return {"id": number, "image_id": image, "category_id": 1, "keypoints": joints,
            "bbox": [card.x, card.y, card.width, card.height], "iscrowd": 0, **more}  # fmt: skip


@pytest.fixture
def photographed(tmp_path: Path) -> DataSource:
    """Three pictures of a person and a statue: plain, with people who are not labelled, with the statue in a crowd."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in (1, 2, 3):
        (folder / f"{number}.png").write_bytes(encode(paint([PERSON, STATUE])))
    images = [{"id": n, "file_name": f"{n}.png", "width": 320, "height": 240} for n in (1, 2, 3)]
    images[1]["all_people_labelled"] = False
    annotations = [annotation(n, n, PERSON) for n in (1, 2, 3)]
    annotations.append(annotation(4, 3, Card(190, 50, 100, 160), iscrowd=1))
    category = {"id": 1, "name": "person", "keypoints": list(SKELETON.joints), "skeleton": [[1, 2], [1, 3]]}
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [category]}))
    return DataSource(annotations=path, images=folder)


async def mined(data: CocoSet, rule: MiningRule = MiningRule(), limit: int | None = None) -> Any:  # noqa: B008
    engine = card_engine()
    await engine.start()
    return await mine_negatives(engine, "person_detector", data, rule, limit)


async def test_only_boxes_that_nobody_labelled_are_mined(photographed: DataSource) -> None:
    found = await mined(read_coco(photographed))
    assert [image.id for image in found.images] == [1, 3], "picture 2 shows people without a label"
    assert found.boxes == 4
    assert [negative.image_id for negative in found.negatives] == [1], "picture 3's statue stands in a crowd"
    (negative,) = found.negatives
    assert np.abs(negative.box - [200, 60, 280, 200]).max() < 3
    assert negative.score == pytest.approx(0.7, abs=0.02)
    assert (await mined(read_coco(photographed), MiningRule(score=0.8))).negatives == ()
    assert [image.id for image in (await mined(read_coco(photographed), limit=1)).images] == [1]


async def test_the_file_becomes_crops_that_hold_nobody(photographed: DataSource, tmp_path: Path) -> None:
    data = read_coco(photographed)
    path = tmp_path / "negatives.json"
    path.write_text(json.dumps(as_coco(await mined(data), data, {})))
    written = json.loads(path.read_text())
    assert [(a["num_keypoints"], a["hard_negative"]) for a in written["annotations"]] == [(0, True)]
    again = read_coco(DataSource(annotations=path, images=photographed.images))
    assert again.skeleton.joints == SKELETON.joints
    assert again.images[0].path == photographed.images / "1.png"
    samples = pose_samples([data, again], SKELETON, min_joints=1, holdout=0)[0]
    empty = [sample for sample in samples if sample.empty]
    assert len(empty) == 1
    assert np.abs(empty[0].box - [200, 60, 280, 200]).max() < 3


@pytest.mark.parametrize(
    ("box", "free"),
    [
        ([100, 100, 200, 300], False),  # the person
        ([100, 100, 140, 160], False),  # a head: IoU 0.12, but somebody's
        ([0, 0, 400, 400], False),  # the person is in it, though IoU is 0.13
        ([190, 100, 290, 300], True),  # beside: a tenth shared
        ([400, 100, 500, 300], True),
        ([620, 120, 660, 180], False),  # in a crowd
    ],
)
def test_parts_of_people_are_somebody(box: list[float], free: bool) -> None:
    def person(corners: list[float], crowd: bool) -> PersonRecord:
        return PersonRecord(1, np.array(corners, float), np.zeros((3, 3)), 1.0, crowd, ())

    people = (person([100, 100, 200, 300], False), person([600, 100, 700, 200], True))
    image = ImageRecord(1, Path("a.jpg"), 800, 400, True, people)
    assert holds_nobody(np.array([box], float), image, MiningRule()).tolist() == [free]
    assert holds_nobody(np.zeros((0, 4)), image, MiningRule()).tolist() == []
    assert holds_nobody(np.array([box], float), ImageRecord(1, Path("a"), 8, 4, True, ()), MiningRule()).all()


def test_names_of_measuring_splits_are_known() -> None:
    assert all(looks_like_measuring(Path(name)) for name in ("coco_val.json", "person_keypoints_val2017.json"))
    assert not any(
        looks_like_measuring(Path(name)) for name in ("coco_train.json", "interval.json", "valley_train.json")
    )


def test_command_writes_the_file_and_warns_of_measuring_splits(
    photographed: DataSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_choice, "open_engine", lambda settings: card_engine())
    output = tmp_path / "run" / "negatives.json"

    def run(annotations: Path, *more: str) -> tuple[int, str]:
        given = ["--annotations", str(annotations), "--images", str(photographed.images), "--output", str(output)]
        result = CliRunner().invoke(app, ["mine-negatives", *given, *more])
        return result.exit_code, result.output

    code, said = run(photographed.annotations)
    assert code == 0
    assert "1 of 4 boxes in 2 pictures hold nobody; 1 pictures with unlabelled" in said
    assert "measure" not in said
    assert len(json.loads(output.read_text())["annotations"]) == 1
    val = photographed.annotations.with_name("coco_val.json")
    val.write_bytes(photographed.annotations.read_bytes())
    assert "looks like pictures to measure on" in run(val)[1]
    code, said = run(photographed.annotations, "--detector", "no_such")
    assert code == 1
    assert "no_such" in said
    (photographed.images / "3.png").unlink()
    assert "3.png: missing" in run(photographed.annotations)[1]
