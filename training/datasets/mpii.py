"""Reader of MPII Human Pose in its common JSON form (``train.json``, ``valid.json`` of HRNet's and mmpose's sets).

A list of people: ``image``, ``center`` and ``scale`` (body height relative to 200 pixels), ``joints`` [16][2] and
``joints_vis`` [16]. Everything is 1-based, as MATLAB counts; here it becomes 0-based. Their box is the square of
``200 * scale`` around the centre moved down by ``15 * scale``.
PCKh measures in head lengths, 0.6 of the head box's diagonal. Head boxes come from ``gt_<name>.mat`` beside the JSON
(``headboxes_src``) or from a person's own ``headbox`` (x1 y1 x2 y2); without both the head is as long as the way from
neck to head top, which is about the same and not exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from service.oks import AREA_OF_BOX
from service.skeletons import MPII16, Skeleton
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
from training.datasets.matfile import read_mat
from training.datasets.picture_size import picture_size
from training.recipe import DataSource

_HEIGHT = 200.0
_SHIFT = 15.0
# Of the head box's diagonal (evalMPII's SC_BIAS).
_HEAD = 0.6
_NECK, _TOP = MPII16.joints.index("neck"), MPII16.joints.index("head_top")


def read_mpii(source: DataSource) -> CocoSet:
    """Read people in MPII's JSON form, or converted to COCO's.

    People get running numbers from 1 in the order of the file as annotation ids. Others in the pictures have no label.

    Raises:
        DatasetError: naming file, record and value that do not fit, or a picture that is missing.
    """
    path = source.annotations
    raw = read_json(path)
    if isinstance(raw, dict):
        return parse_coco(raw, source)
    if not isinstance(raw, list):
        raise DatasetError(f"{path}: a list of people is expected, not {type(raw).__name__}")
    heads = _head_lengths(path, len(raw))
    people: dict[str, list[PersonRecord]] = {}
    for number, entry in enumerate(raw, start=1):
        where = f"{path}: person number {number}"
        if not isinstance(entry, Mapping) or not isinstance(entry.get("image"), str):
            raise DatasetError(f"{where} has no image")
        given = None if heads is None else heads[number - 1]
        people.setdefault(entry["image"], []).append(_person(entry, number, given, where))
    images = []
    for number, (name, persons) in enumerate(people.items(), start=1):
        width, height = picture_size(source.images / name)
        images.append(ImageRecord(number, source.images / name, width, height, False, tuple(persons)))
    skeleton = Skeleton(path.stem, MPII16.joints, MPII16.edges, MPII16.sigmas)
    return CocoSet(path.stem, skeleton, tuple(images), source.repeat, source)


def _person(entry: Mapping[str, Any], number: int, head: float | None, where: str) -> PersonRecord:
    try:
        x, y = (float(value) for value in entry["center"])
        scale = float(entry["scale"])
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{where} has a bad center or scale: {error!r}") from error
    if not scale > 0:
        raise DatasetError(f"{where} has scale {scale:g}")
    # Points counted from 1 are half a pixel off edge coordinates: pixel 1 reaches from 0 to 1.
    middle = np.array([x, y + _SHIFT * scale]) - 0.5
    half = scale * _HEIGHT / 2
    box = checked_box(np.concatenate([middle - half, middle + half]), where)
    keypoints = np.zeros((len(MPII16), 3))
    if "joints" in entry:
        points, visible = entry["joints"], entry.get("joints_vis", ())
        if not isinstance(points, Sequence) or len(points) != len(MPII16) or len(visible) != len(MPII16):
            raise DatasetError(f"{where} has joints {str(points)[:80]} and joints_vis {visible!r}: 16 of each expected")
        flat = [[*point, 2 * float(seen > 0)] for point, seen in zip(points, visible, strict=True)]
        keypoints = checked_keypoints(flat, len(MPII16), where)
        keypoints[:, :2] -= 1.0
        keypoints[keypoints[:, 2] == 0] = 0.0
    if "headbox" in entry:
        corners = checked_box(entry["headbox"], where)
        head = _HEAD * float(np.linalg.norm(corners[2:] - corners[:2]))
    elif head is None and keypoints[_NECK, 2] > 0 and keypoints[_TOP, 2] > 0:
        head = float(np.linalg.norm(keypoints[_NECK, :2] - keypoints[_TOP, :2]))
    return PersonRecord(number, box, keypoints, AREA_OF_BOX * (2 * half) ** 2, False, (), head)


def _head_lengths(path: Path, people: int) -> npt.NDArray[np.float64] | None:
    """From ``gt_<name>.mat``: ``headboxes_src`` [2 corners, 2, people]; None without that file."""
    beside = path.with_name(f"gt_{path.stem}.mat")
    if not beside.exists():
        return None
    boxes = read_mat(beside).get("headboxes_src")
    if boxes is None or boxes.shape != (2, 2, people):
        found = "no headboxes_src" if boxes is None else f"headboxes_src {boxes.shape}"
        raise DatasetError(f"{beside}: {found}, (2, 2, {people}) is expected for {path.name}")
    return np.asarray(_HEAD * np.linalg.norm(boxes[1] - boxes[0], axis=0))
