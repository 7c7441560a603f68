"""If these fail, a published data set trains hidden joints as visible ones, or everything a pixel beside its place."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from service.skeletons import AIC14, COCO17, CROWDPOSE14, LSP14, MPII16
from training.datasets.coco import CocoSet, DatasetError, read_rgb
from training.datasets.matfile import read_mat
from training.datasets.picture_size import picture_size
from training.datasets.reading import READERS, read_set
from training.recipe import DataSource


def _picture(path: Path, width: int = 64, height: int = 48) -> None:
    cv2.imwrite(str(path), np.zeros((height, width, 3), np.uint8))


def _read(kind: str, path: Path, images: Path | None = None) -> CocoSet:
    return read_set(DataSource.model_validate({"annotations": path, "images": images or path.parent, "format": kind}))


def _aic(folder: Path, **change: Any) -> Path:
    _picture(folder / "abc.jpg")
    joints = [value for k in range(14) for value in (10 + k, 20 + k, (1, 2, 3)[k % 3])]
    entry = {"image_id": "abc", "human_annotations": {"human2": [1, 2, 31, 42], "human1": [0, 0, 10, 10]},
             "keypoint_annotations": {"human1": [0, 0, 3] * 14, "human2": joints}, **change}  # fmt: skip
    path = folder / "aic.json"
    path.write_text(json.dumps([entry]))
    return path


def test_ai_challengers_codes_are_turned_round(tmp_path: Path) -> None:
    data = _read("aic", _aic(tmp_path))
    (image,) = data.images
    assert (image.width, image.height) == (64, 48)
    assert data.skeleton.joints == AIC14.joints
    person, other = image.people
    # 1 visible -> 2, 2 hidden -> 1, 3 unknown -> 0 and without a place.
    assert person.keypoints[:3].tolist() == [[10, 20, 2], [11, 21, 1], [0, 0, 0]]
    assert person.box.tolist() == [1, 2, 31, 42]
    assert person.area == pytest.approx(0.53 * 30 * 40)
    assert (person.id, other.id) == (1, 2)
    assert other.labelled == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"human_annotations": {"human1": [1, 2, 3, 4]}}, "abc: .* the same people"),
        ({"human_annotations": {"human1": [1, 2, 3], "human2": [0, 0, 1, 1]}}, r"abc, human1 has bbox \[1, 2, 3\]"),
        ({"keypoint_annotations": {"human1": [5, 5, 4] * 14, "human2": [0, 0, 3] * 14}}, "human1 has visibility 4"),
        ({"keypoint_annotations": {"human1": [5, 5], "human2": [0, 0, 3] * 14}}, "human1 has 2 keypoint numbers"),
        ({"image_id": "gone"}, "gone.jpg: missing"),
        ({"image_id": 7}, "picture number 1 has no image_id"),
    ],
)
def test_what_is_broken_in_ai_challengers_file_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        _read("aic", _aic(tmp_path, **change))


def _mpii(folder: Path, **change: Any) -> Path:
    _picture(folder / "p.png", 640, 480)
    joints = [[100.0 + k, 200.0 + k] for k in range(16)]
    entry = {"image": "p.png", "center": [301.0, 201.0], "scale": 1.5, "joints": joints,
             "joints_vis": [0, *[1] * 15], **change}  # fmt: skip
    path = folder / "valid.json"
    path.write_text(json.dumps([entry, entry]))
    return path


def test_mpii_is_counted_from_zero_and_its_box_is_the_protocols(tmp_path: Path) -> None:
    (image,) = _read("mpii", _mpii(tmp_path)).images
    person = image.people[0]
    assert person.keypoints[:2].tolist() == [[0, 0, 0], [100, 200, 2]]
    # Centre (300, 200) counted from 0, moved down by 15 * 1.5; edge coordinates are half a pixel further.
    assert person.box.tolist() == [300.5 - 150, 223 - 150, 300.5 + 150, 223 + 150]
    assert [p.id for p in image.people] == [1, 2]
    assert not image.complete
    # Neck is joint 8, head top 9: one pixel apart both ways.
    assert person.head == pytest.approx(2**0.5)


def test_mpiis_head_boxes_are_its_measure(tmp_path: Path) -> None:
    path = _mpii(tmp_path)
    boxes = np.zeros((2, 2, 2))
    boxes[1] = [[30, 300], [40, 400]]  # corner 2 of both people: x, y
    (tmp_path / "gt_valid.mat").write_bytes(_matlab("headboxes_src", boxes))
    (image,) = _read("mpii", path).images
    assert [p.head for p in image.people] == pytest.approx([0.6 * 50, 0.6 * 500])
    assert _read("mpii", _mpii(tmp_path, headbox=[1, 1, 4, 5])).images[0].people[0].head == pytest.approx(3.0)
    (tmp_path / "gt_valid.mat").write_bytes(_matlab("headboxes_src", boxes[..., :1]))
    with pytest.raises(DatasetError, match=r"gt_valid.mat.*\(2, 2, 1\)"):
        _read("mpii", path)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"scale": -1}, "scale -1"), ({"center": [1]}, "bad center"), ({"joints": [[1, 2]]}, "16 of each"),
     ({"joints": [[float("nan"), 2]] * 16}, "keypoint number nan"), ({"image": "no.jpg"}, "no.jpg: missing")],
)  # fmt: skip
def test_what_is_broken_in_mpiis_file_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        _read("mpii", _mpii(tmp_path, **change))


def _element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def _matlab(name: str, array: np.ndarray[Any, Any], compressed: bool = False, kind: int = 6) -> bytes:
    """A level 5 file with one double array, by the format's description."""
    matrix = _element(14, _element(6, struct.pack("<II", kind, 0))
                      + _element(5, np.array(array.shape, "<i4").tobytes())
                      + _element(1, name.encode())
                      + _element(9, array.astype("<f8").tobytes(order="F")))  # fmt: skip
    if compressed:
        packed = zlib.compress(matrix)
        matrix = struct.pack("<II", 15, len(packed)) + packed
    return b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM" + matrix


@pytest.mark.parametrize("compressed", [False, True])
def test_matlab_arrays_are_read_in_their_order(tmp_path: Path, compressed: bool) -> None:
    array = np.arange(24.0).reshape(2, 3, 4)
    path = tmp_path / "a.mat"
    path.write_bytes(_matlab("joints", array, compressed))
    np.testing.assert_array_equal(read_mat(path)["joints"], array)


def test_small_elements_and_cells_of_matlab_files(tmp_path: Path) -> None:
    # A name of four letters lies within its tag, as bytes do that fit: MATLAB writes whole doubles as small integers.
    matrix = _element(14, _element(6, struct.pack("<II", 6, 0)) + _element(5, struct.pack("<ii", 1, 3))
                      + struct.pack("<HH4s", 1, 4, b"abcd") + struct.pack("<HH3sx", 2, 3, b"\x07\x08\x09"))  # fmt: skip
    cell = _matlab("cell", np.zeros(1), kind=1)[128:]
    path = tmp_path / "a.mat"
    path.write_bytes(_matlab("x", np.ones((1, 1))) + cell + matrix)
    arrays = read_mat(path)
    assert sorted(arrays) == ["abcd", "x"]
    assert arrays["abcd"].tolist() == [[7, 8, 9]]


def test_a_broken_matlab_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    for content, message in (
        (b"text", "not a MATLAB"),
        (_matlab("x", np.zeros(99))[:200], "broken"),
        (None, "No such"),
    ):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DatasetError, match=f"a.mat: .*{message}"):
            read_mat(path)


@pytest.mark.parametrize("extended", [False, True])
def test_lsp_says_hidden_where_lsp_extended_says_labelled(tmp_path: Path, extended: bool) -> None:
    people = np.zeros((2, 14, 3))
    people[0, :, 0], people[0, :, 1] = np.arange(14) + 11, 2 * np.arange(14) + 11
    people[0, 3, 2] = 1
    people[1] = people[0] + [5, 5, 0]
    joints = people.transpose(1, 2, 0) if extended else people.transpose(2, 1, 0)
    (tmp_path / "joints.mat").write_bytes(_matlab("joints", joints))
    for name in ("im0001.jpg", "im0002.jpg"):
        _picture(tmp_path / name)
    data = _read("lsp", tmp_path / "joints.mat")
    assert data.skeleton.joints == LSP14.joints
    first, second = (image.people[0] for image in data.images)
    assert first.keypoints[3].tolist() == [13, 16, 2 if extended else 1]
    assert (first.labelled, second.labelled) == ((1, 1) if extended else (14, 14))
    if not extended:
        assert first.keypoints[0].tolist() == [10, 10, 2]
        # Joints reach from 10 to 23 and 36; a fifth is added: 13 * 0.1 on each side, about points half a pixel further.
        assert first.box.tolist() == pytest.approx([10.5 - 1.3, 10.5 - 2.6, 23.5 + 1.3, 36.5 + 2.6])


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    names = []
    for folder in ("scenes", "photographs"):
        (tmp_path / folder).mkdir()
        path = _coco(tmp_path / folder)
        names += [_read("coco", path).name, _read("coco", path.rename(path.with_name("annotations.json"))).name]
    assert names == ["set", "scenes", "set", "photographs"]


def test_lsp_needs_a_picture_for_each_person(tmp_path: Path) -> None:
    (tmp_path / "joints.mat").write_bytes(_matlab("joints", np.zeros((3, 14, 2))))
    _picture(tmp_path / "im0001.jpg")
    with pytest.raises(DatasetError, match=r"2 people.*1 pictures"):
        _read("lsp", tmp_path / "joints.mat")


def test_sizes_of_pictures_are_the_upright_ones(tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (40, 30)).save(tmp_path / "turned.jpg", exif=exif)
    assert picture_size(tmp_path / "turned.jpg") == (30, 40)
    assert read_rgb(tmp_path / "turned.jpg").shape == (40, 30, 3)
    (tmp_path / "text.jpg").write_text("no picture")
    for name, message in (("text.jpg", "text.jpg: not a picture"), ("gone.jpg", "gone.jpg: missing")):
        for read in (picture_size, read_rgb):
            with pytest.raises(DatasetError, match=message):
                read(tmp_path / name)


def _coco(folder: Path, image: dict[str, Any] | None = None, **change: Any) -> Path:
    annotation = {
        "id": 5,
        "image_id": 1,
        "category_id": 1,
        "bbox": [1, 2, 30, 40],
        "keypoints": [5, 5, 2] * 14,
        **change,
    }
    path = folder / "set.json"
    path.write_text(json.dumps({
        "images": [{"id": 1, "file_name": "1.jpg", "width": 64, "height": 64, "crowdIndex": 0.3, **(image or {})}],
        "categories": [{"id": 1, "name": "person", "keypoints": [*CROWDPOSE14.joints[:12], "head", "neck"]}],
        "annotations": [annotation],
    }))  # fmt: skip
    return path


def test_crowdposes_areas_are_of_boxes_and_its_head_is_the_top(tmp_path: Path) -> None:
    data = _read("crowdpose", _coco(tmp_path, area=7.0))
    assert data.skeleton.joints == CROWDPOSE14.joints
    assert data.images[0].crowd_index == 0.3
    assert data.images[0].people[0].area == pytest.approx(0.53 * 30 * 40)
    assert _read("coco", _coco(tmp_path, area=7.0)).images[0].people[0].area == 7.0
    assert _read("coco", _coco(tmp_path)).images[0].people[0].area == pytest.approx(0.53 * 30 * 40)
    with pytest.raises(DatasetError, match="picture 1 has crowdIndex 3"):
        _read("crowdpose", _coco(tmp_path, {"crowdIndex": 3}))


@pytest.mark.parametrize(
    ("image", "change", "message"),
    [
        ({}, {"bbox": [1, 2, "x", 4]}, "annotation 5 has bbox"),
        ({}, {"bbox": [1, 2, -3, 4]}, "annotation 5 has bbox"),
        ({}, {"keypoints": [float("inf"), 5, 2] * 14}, "annotation 5 has keypoint number inf"),
        ({}, {"area": float("nan")}, "annotation 5 has area nan"),
        ({}, {"area": "big"}, "annotation 5 has area 'big'"),
        ({}, {"image_id": 9}, "annotation 5 is for picture 9"),
        ({}, {"segmentation": [1, 2, 3]}, "annotation 5 has a bad id or segmentation"),
        ({"width": 0}, {}, "picture 1 has size 0 x 64"),
    ],
)
def test_what_is_broken_in_a_coco_file_is_named(
    tmp_path: Path, image: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(DatasetError, match=f"set.json: {message}"):
        _read("coco", _coco(tmp_path, image, **change))


def test_a_file_that_is_no_annotation_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    for text, message in (("{", "set.json: "), ("3", "set.json: "), ('{"categories": []}', "not a COCO person")):
        path.write_text(text)
        for kind in ("coco", "aic", "mpii", "crowdpose", "ochuman", "lsp"):
            with pytest.raises(DatasetError, match=message):
                _read(kind, path)


def test_a_run_length_mask_is_no_polygon(tmp_path: Path) -> None:
    for counts in ("abc", [3, 4]):
        path = _coco(tmp_path, segmentation={"counts": counts, "size": [64, 64]})
        assert _read("ochuman", path).images[0].people[0].polygons == ()


def test_every_format_has_a_reader() -> None:
    assert set(READERS) == set(DataSource.model_fields["format"].annotation.__args__)  # type: ignore[union-attr]


# Pictures in each file, and the order of joints that the data set documents.
_SAMPLES = {
    "aic": (3, AIC14),
    "crowdpose": (2, CROWDPOSE14),
    "mpii": (5, MPII16),
    "ochuman": (3, COCO17),
}


@pytest.mark.parametrize("kind", _SAMPLES)
def test_real_annotation_files_of_the_formats(photographs: Path, kind: str) -> None:
    folder = photographs / "samples" / kind
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    pictures, skeleton = _SAMPLES[kind]
    data = _read(kind, folder / f"test_{kind}.json")
    assert data.skeleton.joints == skeleton.joints
    assert len(data.images) == pictures
    assert sum(p.labelled for i in data.images for p in i.people) > 10 * pictures
    for image in data.images:
        assert read_rgb(image.path).shape[:2] == (image.height, image.width)
        for person in image.people:
            labelled = person.keypoints[person.keypoints[:, 2] > 0, :2]
            assert (labelled >= -1).all()
            assert (labelled <= [image.width, image.height]).all()
            assert person.area > 0


def test_ai_challengers_own_form_gives_what_the_converted_file_gives(photographs: Path, tmp_path: Path) -> None:
    folder = photographs / "samples" / "aic"
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    raw = json.loads((folder / "test_aic.json").read_text())
    entries = []
    for image in raw["images"]:
        people = [a for a in raw["annotations"] if a["image_id"] == image["id"]]
        shutil.copy(folder / image["file_name"], tmp_path)
        entries.append({
            "image_id": Path(image["file_name"]).stem,
            "human_annotations": {
                f"human{k}": [x, y, x + w, y + h] for k, (x, y, w, h) in enumerate(p["bbox"] for p in people)
            },
            "keypoint_annotations": {
                # Hidden is 1 in the converted file (looked at in the pictures) and 2 in the data set's own.
                f"human{k}": [3 - v if j % 3 == 2 else v for j, v in enumerate(p["keypoints"])]
                for k, p in enumerate(people)
            },
        })  # fmt: skip
    (tmp_path / "own.json").write_text(json.dumps(entries))
    own, converted = _read("aic", tmp_path / "own.json"), _read("aic", folder / "test_aic.json")
    for one, other in zip(own.images, converted.images, strict=True):
        assert (one.width, one.height) == (other.width, other.height)
        for first, second in zip(one.people, other.people, strict=True):
            np.testing.assert_array_equal(first.keypoints, second.keypoints)
            np.testing.assert_array_equal(first.box, second.box)
            assert first.area == pytest.approx(second.area)
