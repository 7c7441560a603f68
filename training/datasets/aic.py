"""Reader of AI Challenger 2017 keypoint annotations.

The file is a list of pictures, each with ``image_id`` (the file's name without ``.jpg``), ``human_annotations``
(x1 y1 x2 y2) and ``keypoint_annotations`` (14 times x, y, v), both by a person's key. Its visibility codes are the
other way round than COCO's: 1 visible, 2 hidden, 3 outside the picture or unknown. There are no areas: 0.53 of the
box, as in mmpose's evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from service.oks import AREA_OF_BOX
from service.skeletons import AIC14, Skeleton
from training.datasets.coco import (
    CocoSet,
    DatasetError,
    ImageRecord,
    PersonRecord,
    checked_box,
    checked_keypoints,
    parse_coco,
    read_json,
)
from training.datasets.picture_size import picture_size
from training.recipe import DataSource

# Their code to COCO's.
_VISIBILITY = {1.0: 2.0, 2.0: 1.0, 3.0: 0.0}


def read_aic(source: DataSource) -> CocoSet:
    """Read the data set's own file, or one converted to COCO's form (whose codes are COCO's).

    People get running numbers from 1 in the order of the file as annotation ids.

    Raises:
        DatasetError: naming file, record and value that do not fit, or a picture that is missing.
    """
    raw = read_json(source.annotations)
    if isinstance(raw, dict):
        return parse_coco(raw, source)
    if not isinstance(raw, list):
        raise DatasetError(f"{source.annotations}: a list of pictures is expected, not {type(raw).__name__}")
    images = []
    people = 0
    for number, entry in enumerate(raw, start=1):
        image = _image(entry, number, people, source)
        people += len(image.people)
        images.append(image)
    skeleton = Skeleton(source.annotations.stem, AIC14.joints, AIC14.edges, AIC14.sigmas)
    return CocoSet(source.annotations.stem, skeleton, tuple(images), source.repeat, source)


def _image(entry: Any, number: int, before: int, source: DataSource) -> ImageRecord:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("image_id"), str):
        raise DatasetError(f"{source.annotations}: picture number {number} has no image_id")
    where = f"{source.annotations}: picture {entry['image_id']}"
    boxes, joints = entry.get("human_annotations"), entry.get("keypoint_annotations")
    if not isinstance(boxes, Mapping) or not isinstance(joints, Mapping) or boxes.keys() != joints.keys():
        raise DatasetError(f"{where}: human_annotations and keypoint_annotations do not name the same people")
    path = source.images / f"{entry['image_id']}.jpg"
    width, height = picture_size(path)
    people = tuple(
        _person(before + k, boxes[key], joints[key], f"{where}, {key}") for k, key in enumerate(boxes, start=1)
    )
    return ImageRecord(number, path, width, height, True, people)


def _person(number: int, box: Any, joints: Any, where: str) -> PersonRecord:
    corners = checked_box(box, where)
    keypoints = checked_keypoints(joints, len(AIC14), where)
    keypoints[:, 2] = _coco_codes(keypoints[:, 2], where)
    keypoints[keypoints[:, 2] == 0] = 0.0
    area = AREA_OF_BOX * float(np.prod(corners[2:] - corners[:2]))
    return PersonRecord(number, corners, keypoints, area, False, ())


def _coco_codes(codes: npt.NDArray[np.float64], where: str) -> list[float]:
    # Some files mark a joint that is not annotated with 0 instead of 3.
    known = {**_VISIBILITY, 0.0: 0.0}
    unknown = [code for code in codes.tolist() if code not in known]
    if unknown:
        raise DatasetError(f"{where} has visibility {unknown[0]:g}: 1, 2 or 3 is expected")
    return [known[code] for code in codes.tolist()]
