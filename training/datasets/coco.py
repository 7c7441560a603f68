"""Reader of COCO-format person annotations, for any skeleton.

Knows files and fields only: which joints a network has, how crops are cut and which samples are used is
decided elsewhere. Joints come by name, from ``categories``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from service.skeletons import Skeleton, make_skeleton
from training.recipe import DataSource


class DatasetError(ValueError):
    """An annotation file that cannot be used; the message names file, record and value."""


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
    """Read one COCO-format file. Raises DatasetError naming the record that does not fit."""
    path = source.annotations
    try:
        raw = json.loads(path.read_text())
        category = next(c for c in raw["categories"] if c["name"] == "person")
    except (OSError, json.JSONDecodeError, KeyError, StopIteration) as error:
        raise DatasetError(f"{path}: not a COCO person annotation file: {error!r}") from error
    joints = category.get("keypoints", [])
    edges = [(joints[a - 1], joints[b - 1]) for a, b in category.get("skeleton", [])]
    try:
        skeleton = make_skeleton(path.stem, joints, edges)
    except KeyError as error:
        raise DatasetError(f"{path}: unknown joint {error} among {joints}") from error
    people: dict[int, list[PersonRecord]] = {}
    negatives: dict[int, list[npt.NDArray[np.float64]]] = {}
    for annotation in raw["annotations"]:
        if annotation.get("category_id", category["id"]) != category["id"]:
            continue
        person = _person(annotation, len(joints), path)
        if annotation.get("hard_negative", False):
            negatives.setdefault(annotation["image_id"], []).append(person.box)
        else:
            people.setdefault(annotation["image_id"], []).append(person)
    images = tuple(
        ImageRecord(
            id=image["id"],
            path=source.images / image["file_name"],
            width=image["width"],
            height=image["height"],
            complete=bool(image.get("all_people_labelled", True)),
            people=tuple(people.get(image["id"], ())),
            negatives=tuple(negatives.get(image["id"], ())),
        )
        for image in raw["images"]
    )
    return CocoSet(path.stem, skeleton, images, source.repeat, source)


def _person(annotation: dict[str, Any], joints: int, path: Path) -> PersonRecord:
    box = annotation.get("bbox", ())
    if len(box) != 4 or not np.isfinite(box).all():
        raise DatasetError(f"{path}: annotation {annotation.get('id')} has bbox {box!r}")
    x, y, w, h = box
    flat = annotation.get("keypoints") or [0] * 3 * joints
    if len(flat) != 3 * joints:
        raise DatasetError(
            f"{path}: annotation {annotation.get('id')} has {len(flat)} keypoint numbers, {3 * joints} expected"
        )
    segmentation = annotation.get("segmentation")
    polygons = tuple(tuple(p) for p in segmentation) if isinstance(segmentation, list) else ()
    return PersonRecord(
        id=int(annotation["id"]),
        box=np.array([x, y, x + w, y + h], np.float64),
        keypoints=np.array(flat, np.float64).reshape(joints, 3),
        area=float(annotation.get("area", w * h)),
        crowd=bool(annotation.get("iscrowd", 0)),
        polygons=polygons,
    )


def read_rgb(path: Path) -> npt.NDArray[np.uint8]:
    """Decode one training picture to RGB uint8 [H, W, 3]; EXIF applied. Raises DatasetError with its path."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise DatasetError(f"{path}: missing or not a picture")
    return np.asarray(image, np.uint8)
