"""People of several data sets with different skeletons, joined by joint name into one."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from service.skeletons import Skeleton
from training.datasets.coco import CocoSet, DatasetError


@dataclass(frozen=True)
class PoseSample:
    """One person to cut out: ``keypoints`` float64 [K, 3] in the union's order, v = 0 where not labelled."""

    path: Path
    box: npt.NDArray[np.float64]
    keypoints: npt.NDArray[np.float64]
    area: float
    dataset: str


def join_keypoints(keypoints: npt.NDArray[np.float64], source: Skeleton, union: Skeleton) -> npt.NDArray[np.float64]:
    """Reorder [K_source, 3] to [K_union, 3] by name; joints that ``source`` lacks get v = 0 (no label)."""
    joined = np.zeros((len(union), 3))
    for target, index in enumerate(union.indices_in(source)):
        if index >= 0:
            joined[target] = keypoints[index]
    return joined


def is_held_out(dataset: str, image_id: int, fraction: float) -> bool:
    """Whether a training picture is kept aside to watch the run: decided by a hash, the same in every run."""
    return zlib.crc32(f"{dataset}/{image_id}".encode()) < fraction * 2**32


def pose_samples(
    sets: Sequence[CocoSet], union: Skeleton, *, min_joints: int, holdout: float
) -> tuple[list[PoseSample], list[float], list[PoseSample]]:
    """People with at least ``min_joints`` labelled joints that the union knows.

    Returns:
        training samples, how often each counts in an epoch (its data set's ``repeat``), held-out samples.

    Raises:
        DatasetError: a data set shares no joint with the union, or nobody is left.
    """
    train: list[PoseSample] = []
    repeats: list[float] = []
    held: list[PoseSample] = []
    for data in sets:
        if all(i < 0 for i in union.indices_in(data.skeleton)):
            raise DatasetError(f"{data.name}: none of its joints {list(data.skeleton.joints)} is in {union.name}")
        for image in data.images:
            aside = is_held_out(data.name, image.id, holdout)
            for person in image.people:
                keypoints = join_keypoints(person.keypoints, data.skeleton, union)
                if person.crowd or int((keypoints[:, 2] > 0).sum()) < min_joints:
                    continue
                sample = PoseSample(image.path, person.box, keypoints, person.area, data.name)
                if aside:
                    held.append(sample)
                else:
                    train.append(sample)
                    repeats.append(data.repeat)
    if not train:
        raise DatasetError(f"no person with {min_joints} labelled joints in {[d.name for d in sets]}")
    return train, repeats, held
