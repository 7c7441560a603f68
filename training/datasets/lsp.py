"""Reader of Leeds Sports Pose (Johnson and Everingham, BMVC 2010) and LSP Extended (CVPR 2011).

Their ``joints.mat`` holds ``joints``: LSP [3, 14, people], where the third row is 1 for a hidden joint; LSP Extended
[14, 3, people], where the third column is 1 for a labelled one. Coordinates are 1-based. The people of the file are
``im0001.jpg``, ``im0002.jpg``, ... (five digits in LSP Extended), one in each picture. There are no boxes: the
labelled joints' extent is made larger by a fifth, since head, hands and feet reach past their joints.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from service.oks import AREA_OF_BOX
from service.skeletons import LSP14, Skeleton
from training.datasets.coco import CocoSet, DatasetError, ImageRecord, PersonRecord, read_coco, set_name
from training.datasets.matfile import read_mat
from training.datasets.picture_size import picture_size
from training.recipe import DataSource

_MARGIN = 0.2
# Smallest side of a box in pixels, for people with a single labelled joint.
_LEAST = 8.0


def read_lsp(source: DataSource) -> CocoSet:
    """Read ``joints.mat``, or LSP converted to COCO's form. Raises DatasetError naming file, record and value."""
    path = source.annotations
    if path.suffix != ".mat":
        return read_coco(source)
    joints = read_mat(path).get("joints")
    if joints is None or joints.ndim != 3 or sorted(joints.shape[:2]) != [3, 14]:
        shape = "no such array" if joints is None else str(joints.shape)
        raise DatasetError(f"{path}: joints of shape (3, 14, people) or (14, 3, people) expected, found {shape}")
    extended = joints.shape[0] == 14
    people = np.moveaxis(joints if extended else joints.swapaxes(0, 1), -1, 0)
    pictures = sorted(source.images.glob("im*.*"))
    if len(pictures) != len(people):
        raise DatasetError(f"{path} has {len(people)} people, {source.images} has {len(pictures)} pictures im*")
    skeleton = Skeleton(set_name(path), LSP14.joints, LSP14.edges, LSP14.sigmas)
    images = []
    for number, (picture, keypoints) in enumerate(zip(pictures, people, strict=True), start=1):
        width, height = picture_size(picture)
        person = _person(number, keypoints, extended, (width, height), path)
        images.append(ImageRecord(number, picture, width, height, False, (person,) if person else ()))
    return CocoSet(skeleton.name, skeleton, tuple(images), source.repeat, source)


def _person(
    number: int, given: npt.NDArray[np.float64], extended: bool, size: tuple[int, int], path: Path
) -> PersonRecord | None:
    """One person [14, 3] as the file has it; None without a labelled joint."""
    if not np.isfinite(given).all():
        raise DatasetError(f"{path}: person {number} has a joint that is not a number")
    keypoints = given - [1.0, 1.0, 0.0]
    keypoints[:, 2] = np.where(given[:, 2] > 0, 2.0, 0.0) if extended else np.where(given[:, 2] > 0, 1.0, 2.0)
    keypoints[keypoints[:, 2] == 0] = 0.0
    labelled = keypoints[keypoints[:, 2] > 0, :2]
    if not len(labelled):
        return None
    low, high = labelled.min(0) + 0.5, labelled.max(0) + 0.5
    middle, half = (low + high) / 2, np.maximum((high - low) * (1 + _MARGIN), _LEAST) / 2
    box = np.concatenate([np.maximum(middle - half, 0), np.minimum(middle + half, size)])
    area = AREA_OF_BOX * float(np.prod(np.maximum(box[2:] - box[:2], 1.0)))
    return PersonRecord(number, box, keypoints, area, False, ())
