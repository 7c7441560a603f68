"""Reader of COCO-format person annotations, for any skeleton.

Knows files and fields only: which joints a network has, how crops are cut and which samples are used is
decided elsewhere. Joints come by name, from ``categories``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from service.oks import AREA_OF_BOX
from service.skeletons import Skeleton, make_skeleton
from training.recipe import DataSource

# Names that annotation files give to joints we know by another.
_ALIASES = {"head": "head_top", "top_head": "head_top", "upper_neck": "neck"}
# File names that every set of a kind has (rendered scenes, LSP).
_NAMELESS = ("annotations", "joints")


class DatasetError(ValueError):
    """An annotation file or picture that cannot be used; the message names file, record and value."""


@dataclass(frozen=True)
class PersonRecord:
    """One annotated person.

    Attributes:
        id: annotation id.
        box: float64 [4] x1 y1 x2 y2, image edge coordinates.
        keypoints: float64 [K, 3] x, y (points), v (2 visible, 1 hidden, 0 not labelled).
        area: the annotation's area in square pixels.
        crowd: a region of people, to be ignored.
        polygons: outline as flat x, y lists; empty when unknown.
        head: length of the head segment in pixels, PCKh's measure; None when unknown.
    """

    id: int
    box: npt.NDArray[np.float64]
    keypoints: npt.NDArray[np.float64]
    area: float
    crowd: bool
    polygons: tuple[tuple[float, ...], ...]
    head: float | None = None

    @property
    def labelled(self) -> int:
        """Number of joints with a label."""
        return int((self.keypoints[:, 2] > 0).sum())


@dataclass(frozen=True)
class ImageRecord:
    """One picture and its people.

    Attributes:
        id: image id.
        path: the file.
        width, height: upright size in pixels.
        complete: false where unlabelled people may be in it.
        people: those annotated.
        negatives: boxes (as a person's) that are known to hold nobody: a detector's false positives.
        crowd_index: CrowdPose's measure of how people overlap, 0..1; None in other sets.
    """

    id: int
    path: Path
    width: int
    height: int
    complete: bool
    people: tuple[PersonRecord, ...]
    negatives: tuple[npt.NDArray[np.float64], ...] = ()
    crowd_index: float | None = None


@dataclass(frozen=True)
class CocoSet:
    """A whole annotation file, of whatever format; ``source`` says how its people are to be used."""

    name: str
    skeleton: Skeleton
    images: tuple[ImageRecord, ...]
    repeat: float = 1.0
    source: DataSource | None = None


def read_coco(source: DataSource) -> CocoSet:
    """Read one COCO-format file.

    People without an area get 0.53 of their box. Outlines as run lengths are left out, polygons are kept.

    Raises:
        DatasetError: naming file, record and value that do not fit.
    """
    return parse_coco(read_json(source.annotations), source)


def read_json(path: Path) -> Any:
    """The JSON of an annotation file. Raises DatasetError with its path."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: {error}") from error


def parse_coco(raw: Any, source: DataSource) -> CocoSet:
    """What :func:`read_coco` does with the JSON."""
    path = source.annotations
    try:
        category = next(c for c in raw["categories"] if c["name"] == "person")
        records, annotations = list(raw["images"]), list(raw["annotations"])
    except (KeyError, TypeError, StopIteration) as error:
        raise DatasetError(f"{path}: not a COCO person annotation file: {error!r}") from error
    joints = [joint_name(joint) for joint in category.get("keypoints", [])]
    edges = [(joints[a - 1], joints[b - 1]) for a, b in category.get("skeleton", []) if max(a, b) <= len(joints)]
    try:
        skeleton = make_skeleton(set_name(path), joints, edges)
    except KeyError as error:
        raise DatasetError(f"{path}: unknown joint {error} among {joints}") from error
    people: dict[int, list[PersonRecord]] = {}
    negatives: dict[int, list[npt.NDArray[np.float64]]] = {}
    for number, annotation in enumerate(annotations):
        if annotation.get("category_id", category["id"]) != category["id"]:
            continue
        where = f"{path}: annotation {annotation.get('id', f'number {number}')}"
        person = _person(annotation, len(joints), where)
        image_id = _field(annotation, "image_id", where)
        if annotation.get("hard_negative", False):
            negatives.setdefault(image_id, []).append(person.box)
        else:
            people.setdefault(image_id, []).append(person)
    images = tuple(_image(image, number, source, people, negatives) for number, image in enumerate(records))
    strangers = people.keys() - {image.id for image in images}
    if strangers:
        first = min(strangers, key=str)
        raise DatasetError(f"{path}: annotation {people[first][0].id} is for picture {first!r}, which is not listed")
    return CocoSet(set_name(path), skeleton, images, source.repeat, source)


def set_name(path: Path) -> str:
    """What a set is called in reports: its file's name, or its folder's where the file's says nothing."""
    return (path.resolve().parent.name or path.stem) if path.stem in _NAMELESS else path.stem


def joint_name(written: str) -> str:
    """Our name of a joint: ``Head top``, ``top_head`` and ``head`` are all ``head_top``."""
    name = str(written).strip().lower().replace(" ", "_")
    return _ALIASES.get(name, name)


def checked_box(box: Any, where: str) -> npt.NDArray[np.float64]:
    """Four finite numbers, the first two not over the last two. Raises DatasetError that begins with ``where``."""
    try:
        corners = np.asarray(box, np.float64)
    except (TypeError, ValueError):
        corners = np.empty(0)
    if corners.shape != (4,) or not np.isfinite(corners).all() or (corners[2:] < corners[:2]).any():
        raise DatasetError(f"{where} has bbox {box!r}")
    return corners


def checked_keypoints(flat: Any, joints: int, where: str) -> npt.NDArray[np.float64]:
    """[K, 3] finite numbers from a flat list. Raises DatasetError that begins with ``where``."""
    try:
        numbers = np.asarray(flat, np.float64).ravel()
    except (TypeError, ValueError):
        raise DatasetError(f"{where} has keypoints that are no numbers: {str(flat)[:200]}") from None
    if len(numbers) != 3 * joints:
        raise DatasetError(f"{where} has {len(numbers)} keypoint numbers, {3 * joints} expected")
    if not np.isfinite(numbers).all():
        raise DatasetError(f"{where} has keypoint number {numbers[~np.isfinite(numbers)][0]}")
    return numbers.reshape(joints, 3)


def _person(annotation: Mapping[str, Any], joints: int, where: str) -> PersonRecord:
    given = annotation.get("bbox", ())
    try:
        x, y, w, h = (float(value) for value in given)
    except (TypeError, ValueError):
        raise DatasetError(f"{where} has bbox {given!r}") from None
    box = checked_box([x, y, x + w, y + h], where)
    area = annotation.get("area")
    area = AREA_OF_BOX * w * h if area is None else area
    if not isinstance(area, (int, float)) or not 0 <= area < float("inf"):
        raise DatasetError(f"{where} has area {area!r}")
    number = _field(annotation, "id", where)
    try:
        segmentation = annotation.get("segmentation")
        # Run lengths (a mapping) are for crowds and some sets' masks; only polygons can be cut out with a pen.
        polygons = tuple(tuple(map(float, p)) for p in segmentation) if isinstance(segmentation, list) else ()
        identity = int(number)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{where} has a bad id or segmentation: {error}") from error
    return PersonRecord(
        id=identity,
        box=box,
        keypoints=checked_keypoints(annotation.get("keypoints") or [0] * 3 * joints, joints, where),
        area=float(area),
        crowd=bool(annotation.get("iscrowd", 0)),
        polygons=polygons,
    )


def _image(
    image: Mapping[str, Any],
    number: int,
    source: DataSource,
    people: Mapping[int, list[PersonRecord]],
    negatives: Mapping[int, list[npt.NDArray[np.float64]]],
) -> ImageRecord:
    where = f"{source.annotations}: picture {image.get('id', f'number {number}')}"
    width, height = _field(image, "width", where), _field(image, "height", where)
    if not (isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0):
        raise DatasetError(f"{where} has size {width!r} x {height!r}")
    identity = _field(image, "id", where)
    crowd = image.get("crowdIndex")
    if not isinstance(crowd, (int, float, type(None))):
        raise DatasetError(f"{where} has crowdIndex {crowd!r}")
    return ImageRecord(
        id=identity,
        path=source.images / str(_field(image, "file_name", where)),
        width=width,
        height=height,
        complete=bool(image.get("all_people_labelled", True)),
        people=tuple(people.get(identity, ())),
        negatives=tuple(negatives.get(identity, ())),
        crowd_index=None if crowd is None else float(crowd),
    )


def _field(record: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in record:
        raise DatasetError(f"{where} has no {name}")
    return record[name]


def read_rgb(path: Path) -> npt.NDArray[np.uint8]:
    """Decode one training picture to RGB uint8 [H, W, 3]; EXIF applied. Raises DatasetError with its path."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise DatasetError(f"{path}: {'not a picture' if path.exists() else 'missing'}")
    return np.asarray(image, np.uint8)
