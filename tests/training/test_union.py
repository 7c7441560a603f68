"""If these fail, a left wrist of one data set trains the right ankle of another."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from service.skeletons import AIC14, COCO17, LSP14, UNION19
from training.datasets.coco import DatasetError, read_coco
from training.datasets.union import is_held_out, join_keypoints, pose_samples
from training.recipe import DataSource


@pytest.mark.parametrize("source", [COCO17, LSP14, AIC14])
def test_joints_are_joined_by_name(source) -> None:  # type: ignore[no-untyped-def]
    keypoints = np.array([[10 * k, k, 2] for k in range(1, len(source) + 1)], np.float64)
    joined = join_keypoints(keypoints, source, UNION19)
    for index, joint in enumerate(UNION19.joints):
        if joint in source.joints:
            assert joined[index].tolist() == keypoints[source.joints.index(joint)].tolist()
        else:
            assert joined[index].tolist() == [0, 0, 0]


def _write(folder: Path, name: str, joints: tuple[str, ...], annotations: list[dict[str, object]]) -> DataSource:
    path = folder / f"{name}.json"
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 100} for i in range(1, 6)]
    category = {"id": 1, "name": "person", "keypoints": joints, "skeleton": []}
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [category]}))
    return DataSource(annotations=path, images=folder)


def _annotation(number: int, joints: int, **more: object) -> dict[str, object]:
    return {"id": number, "image_id": number, "category_id": 1, "bbox": [10, 20, 30, 40],
            "keypoints": [15.0, 25.0, 2] * joints, **more}  # fmt: skip


def test_crowds_and_people_without_joints_are_left_out(tmp_path: Path) -> None:
    source = _write(tmp_path, "aic", AIC14.joints, [
        _annotation(1, 14), _annotation(2, 14, iscrowd=1), {**_annotation(3, 14), "keypoints": [0] * 42},
    ])  # fmt: skip
    people, repeats, held = pose_samples([read_coco(source)], UNION19, min_joints=3, holdout=0)
    assert len(people) == 1
    assert repeats == [1.0]
    assert not held
    assert people[0].box.tolist() == [10, 20, 40, 60]
    assert (people[0].keypoints[:, 2] > 0).sum() == 14


def test_held_out_people_are_never_trained_on(tmp_path: Path) -> None:
    source = _write(tmp_path, "lsp", LSP14.joints, [_annotation(i, 14) for i in range(1, 6)])
    train, _, held = pose_samples([read_coco(source)], UNION19, min_joints=3, holdout=0.4)
    assert {s.path.name for s in train} | {s.path.name for s in held} == {f"{i}.jpg" for i in range(1, 6)}
    assert not {s.path.name for s in train} & {s.path.name for s in held}
    assert np.mean([is_held_out("set", i, 0.1) for i in range(5000)]) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"bbox": [1, 2, 3]}, "bbox"), ({"keypoints": [1, 2]}, "42 expected"), ({"bbox": [0, 0, float("nan"), 4]}, "nan")],
)
def test_a_broken_annotation_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    source = _write(tmp_path, "aic", AIC14.joints, [_annotation(7, 14, **change)])
    with pytest.raises(DatasetError, match=f"annotation 7.*{message}"):
        read_coco(source)


def test_an_unknown_joint_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="tail"):
        read_coco(_write(tmp_path, "dogs", ("tail",), []))


def test_the_photographs_are_read_as_their_readme_counts_them(photographs: Path) -> None:
    sizes = {"coco_train": (2609, 5336), "coco_val": (555, 1243), "lsp_train": (1000, 1000)}
    for name, (pictures, people) in sizes.items():
        found = read_coco(DataSource(annotations=photographs / f"{name}.json", images=photographs / name))
        assert len(found.images) == pictures
        assert sum(p.labelled > 0 for i in found.images for p in i.people) == people
