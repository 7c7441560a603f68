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
from training.selection import people_choice


@dataclass(frozen=True)
class PoseSample:
    """One crop to cut out.

    Attributes:
        path: the picture.
        box: float64 [4] x1 y1 x2 y2, edge coordinates.
        keypoints: float64 [K, 3] in the union's order, v = 0 where not labelled.
        area: the person's area in square picture pixels.
        dataset: name of its set.
        empty: the box is known to hold nobody: every joint is labelled and none is present, whatever v says.
        weight: how much its labels count in the loss.
        id: annotation id; 0 where there is none.
    """

    path: Path
    box: npt.NDArray[np.float64]
    keypoints: npt.NDArray[np.float64]
    area: float
    dataset: str
    empty: bool = False
    weight: float = 1.0
    id: int = 0


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
    """People with at least ``min_joints`` labelled joints that the union knows, and crops known to hold nobody.

    What a set's source chooses (selection, ids to keep) is about training only: people held out are the same with
    and without it. Joints that are not trained on are not measured either.

    Returns:
        training samples, how often each counts in an epoch (its set's ``repeat`` or ``share``), held-out samples.

    Raises:
        DatasetError: a data set shares no joint with the union, nobody is left, or shares cannot be met.
    """
    train: list[PoseSample] = []
    held: list[PoseSample] = []
    counts: list[int] = []
    for data in sets:
        if all(i < 0 for i in union.indices_in(data.skeleton)):
            raise DatasetError(f"{data.name}: none of its joints {list(data.skeleton.joints)} is in {union.name}")
        ours, aside = _samples(data, union, min_joints, holdout)
        train += ours
        held += aside
        counts.append(len(ours))
    if not train:
        raise DatasetError(f"no person with {min_joints} labelled joints in {[d.name for d in sets]}")
    repeats = [repeat for count, repeat in zip(counts, sample_repeats(sets, counts), strict=True) for _ in range(count)]
    return train, repeats, held


def sample_repeats(sets: Sequence[CocoSet], counts: Sequence[int]) -> list[float]:
    """How often a sample of each set counts, so that shares of all draws are met.

    Sets without ``share`` divide what is left among them by ``repeat`` times their samples.

    Args:
        sets: the data sets.
        counts: samples of each.

    Raises:
        DatasetError: a set with a share has no sample, or the shares do not add up.
    """
    shares = [data.source.share if data.source else None for data in sets]
    given = sum(share for share in shares if share is not None)
    free = sum(d.repeat * count for d, count, share in zip(sets, counts, shares, strict=True) if share is None)
    listed = ", ".join(f"{d.name} {share:g}" for d, share in zip(sets, shares, strict=True) if share is not None)
    if given > 1 + 1e-9 or (free > 0 and given > 1 - 1e-9):
        raise DatasetError(f"shares leave nothing for the other sets or exceed 1: {listed}")
    if listed and free == 0 and abs(given - 1) > 1e-6:
        raise DatasetError(f"every set has a share and they add up to {given:g}, not 1: {listed}")
    repeats = []
    for data, count, share in zip(sets, counts, shares, strict=True):
        if share is None:
            repeats.append(data.repeat)
        elif count == 0:
            raise DatasetError(f"{data.name} shall give {share:g} of all crops and has nobody to train on")
        else:
            # Of all draws the sets without a share keep their own size.
            total = free / (1 - given) if free > 0 else 1.0
            repeats.append(share * total / count)
    return repeats


def _samples(
    data: CocoSet, union: Skeleton, min_joints: int, holdout: float
) -> tuple[list[PoseSample], list[PoseSample]]:
    """Training and held-out samples of one set."""
    choice = people_choice(data)
    trained_on = choice.mask(data.skeleton.joints)
    weight = data.source.weight if data.source else 1.0
    train: list[PoseSample] = []
    held: list[PoseSample] = []
    for image in data.images:
        aside = is_held_out(data.name, image.id, holdout)
        for person in image.people:
            keypoints = join_keypoints(person.keypoints * trained_on[:, None], data.skeleton, union)
            if person.crowd or int((keypoints[:, 2] > 0).sum()) < min_joints:
                continue
            sample = PoseSample(image.path, person.box, keypoints, person.area, data.name, weight=weight, id=person.id)
            if aside:
                held.append(sample)
            elif choice.takes(person):
                train.append(sample)
        if not aside:
            for box in image.negatives:
                nothing = np.zeros((len(union), 3))
                area = float(np.prod(box[2:] - box[:2]))
                train.append(PoseSample(image.path, box, nothing, area, data.name, empty=True, weight=weight))
    return train, held
