"""If these fail, ranges are set on the pictures that figures are reported on, or on only a part of what was asked."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.checkpoints import ExportError
from export.precision.calibration import CalibrationFeed, load_pictures, network_input
from service.engines.base import ModelMetadata, TensorSpec

CATEGORY = {"id": 1, "name": "person", "keypoints": ["nose"], "skeleton": []}


def metadata(*inputs: TensorSpec, kind: str = "part") -> ModelMetadata:
    return ModelMetadata("net", (1,), "onnxruntime_onnx", 8, inputs, (), {"kind": kind})


def coco(folder: Path, name: str, count: int) -> tuple[Path, Path]:
    """Pictures of one grey each, so that every one can be told."""
    (folder / name).mkdir()
    images, annotations = [], []
    for index in range(count):
        Image.new("RGB", (32, 24), (index, index, index)).save(folder / name / f"{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "width": 32, "height": 24})
        annotations.append(
            {
                "id": index + 1,
                "image_id": index,
                "category_id": 1,
                "bbox": [4, 4, 16, 16],
                "area": 256,
                "iscrowd": 0,
                "keypoints": [8, 8, 2],
                "num_keypoints": 1,
            }
        )
    content = {"images": images, "annotations": annotations, "categories": [CATEGORY]}
    (folder / f"{name}.json").write_text(json.dumps(content))
    return folder / f"{name}.json", folder / name


def test_the_feed_gives_every_picture_once_and_can_be_read_again() -> None:
    pixels = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1).repeat(3, -1)
    feed = CalibrationFeed("crops", pixels)
    for _ in range(2):
        runs = []
        while (run := feed.get_next()) is not None:
            runs.append(run["crops"])
        np.testing.assert_array_equal(np.concatenate(runs), pixels)
        assert max(map(len, runs)) <= 4
        feed.rewind()
    with pytest.raises(ExportError, match="no pictures"):
        CalibrationFeed("crops", pixels[:0])


def test_calibration_and_comparison_share_no_picture(tmp_path: Path) -> None:
    found = load_pictures(coco(tmp_path, "some_train", 8), 4)
    sides = [
        {int(sample.image[0, 0, 0]) for sample in samples.pictures} for samples in (found.calibration, found.comparison)
    ]
    assert len(sides[0]) == len(sides[1]) == 4
    assert not sides[0] & sides[1]


def test_a_set_to_measure_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"coco_val\.json.*training set"):
        load_pictures(coco(tmp_path, "coco_val", 2), 4)


def test_without_photographs_scenes_are_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITONPOSE_DATA", raising=False)
    found = load_pictures(None, 2)
    assert found.calibration.name == "rendered scenes" and len(found.calibration.pictures) == 2


def test_the_default_sets_are_training_sets(photographs: Path) -> None:
    assert load_pictures(None, 4).calibration.name == "coco_train, lsp_train"


def test_a_detector_gets_letterboxed_pictures_and_a_pose_network_people(tmp_path: Path) -> None:
    samples = load_pictures(coco(tmp_path, "some_train", 8), 4).calibration
    detector = metadata(TensorSpec("images", "uint8", (48, 48, 3)), kind="detector")
    assert network_input(detector, samples, 3).shape == (3, 48, 48, 3)
    pose = metadata(TensorSpec("crops", "uint8", (64, 48, 3)))
    assert network_input(pose, samples, 99).shape == (4, 64, 48, 3)
    with pytest.raises(ExportError, match="net does not take pictures"):
        network_input(metadata(TensorSpec("maps", "float32", (3, 4, 4))), samples, 3)
