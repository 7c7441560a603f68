"""Boxes to train a detector on: people of any supported data set, or all categories of a COCO file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.datasets.coco import DatasetError, ImageRecord, checked_box, read_json
from training.datasets.reading import read_set
from training.recipe import DataSource

Boxes = npt.NDArray[np.float64]
PERSON = 1
# COCO numbers its 80 categories 1 to 90.
_LAST_CATEGORY = 90


@dataclass(frozen=True)
class BoxRecord:
    """One picture and its boxes.

    Attributes:
        path: the file.
        width, height: upright size in pixels.
        complete: false where things may be in it that nobody labelled.
        boxes: [G, 4] x1 y1 x2 y2, image edge coordinates.
        labels: int64 [G] COCO category ids, 1 for people.
        crowds: [C, 4] regions to be ignored.
        outlines: of each box, polygons as flat x, y lists, none where unknown; empty where the file has none at all.
    """

    path: Path
    width: int
    height: int
    complete: bool
    boxes: Boxes
    labels: npt.NDArray[np.int64]
    crowds: Boxes
    outlines: tuple[tuple[tuple[float, ...], ...], ...] = ()


@dataclass(frozen=True)
class BoxSet:
    """A whole annotation file."""

    name: str
    images: tuple[BoxRecord, ...]
    repeat: float = 1.0


def people_boxes(record: ImageRecord) -> BoxRecord:
    """The people of a picture as boxes; crowds apart."""
    people = _rows([p.box for p in record.people if not p.crowd])
    crowds = _rows([p.box for p in record.people if p.crowd])
    labels = np.full(len(people), PERSON, np.int64)
    outlines = tuple(p.polygons for p in record.people if not p.crowd)
    return BoxRecord(record.path, record.width, record.height, record.complete, people, labels, crowds, outlines)


def read_boxes(source: DataSource, *, every_category: bool = False) -> BoxSet:
    """Read a data set's boxes.

    Args:
        source: of any format; with ``every_category`` of COCO's only.
        every_category: all categories, labelled with COCO's ids, instead of people.

    Raises:
        DatasetError: naming file, record and value that do not fit.
    """
    if not every_category:
        data = read_set(source)
        return BoxSet(data.name, tuple(people_boxes(record) for record in data.images), source.repeat)
    if source.format != "coco":
        raise DatasetError(
            f"{source.annotations}: all categories can be read from COCO files only, not {source.format}"
        )
    path = source.annotations
    raw = read_json(path)
    try:
        images = {image["id"]: image for image in raw["images"]}
        categories = {category["id"]: category["name"] for category in raw["categories"]}
        found: dict[Any, list[tuple[bool, Boxes, int]]] = {number: [] for number in images}
        _check_categories(categories, path)
        for annotation in raw["annotations"]:
            where = f"{path}: annotation {annotation.get('id')}"
            if annotation["category_id"] not in categories or annotation["image_id"] not in images:
                raise DatasetError(
                    f"{where} is of category {annotation['category_id']!r}, picture {annotation['image_id']!r}: "
                    "one of them is not listed"
                )
            if annotation.get("hard_negative", False):
                continue
            x, y, w, h = annotation["bbox"]
            box = checked_box([x, y, x + w, y + h], where)
            crowd = bool(annotation.get("iscrowd", 0))
            found[annotation["image_id"]].append((crowd, box, annotation["category_id"]))
        records = tuple(_record(image, found[number], source) for number, image in images.items())
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path}: not a COCO annotation file: {error!r}") from error
    return BoxSet(path.stem, records, source.repeat)


def _check_categories(categories: dict[Any, str], path: Path) -> None:
    if categories.get(PERSON) != "person":
        raise DatasetError(f"{path}: category {PERSON} is {categories.get(PERSON)!r}, in COCO it is 'person'")
    for number in categories:
        if not isinstance(number, int) or not 1 <= number <= _LAST_CATEGORY:
            raise DatasetError(f"{path}: category id {number!r}; COCO's are 1 to {_LAST_CATEGORY}")


def _record(image: Any, found: list[tuple[bool, Boxes, int]], source: DataSource) -> BoxRecord:
    things = [(box, label) for crowd, box, label in found if not crowd]
    return BoxRecord(
        source.images / image["file_name"],
        int(image["width"]),
        int(image["height"]),
        bool(image.get("all_people_labelled", True)),
        _rows([box for box, _ in things]),
        np.array([label for _, label in things], np.int64),
        _rows([box for crowd, box, _ in found if crowd]),
    )


def _rows(boxes: list[Boxes]) -> Boxes:
    return np.array(boxes, np.float64).reshape(-1, 4)
