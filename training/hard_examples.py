"""Hard examples: people whom a trained network does not place well enough yet.

Team OKS (COCO 2017) trained on COCO alone first, let that network pick the hard people of AI Challenger, and trained
again on COCO and those. A person is hard when the OKS of the network's pose, on a crop of the annotated box, is below
a bound. What comes out is a list of annotation ids, which a recipe's ``keep`` takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.crops import box_crop_matrices, crop_people, invert_affine, transform_points
from service.oks import pairwise_oks
from service.skeletons import Skeleton
from training.datasets.coco import CocoSet, ImageRecord, PersonRecord, read_rgb
from training.metrics.coco import join_joints
from training.selection import PeopleChoice

Array = npt.NDArray[np.float64]

# Crops of one forward pass.
_BATCH = 64


@dataclass(frozen=True)
class CropPoser:
    """A network that poses crops.

    Attributes:
        skeleton: of its K joints.
        size: width, height of its crops in pixels.
        pose: uint8 [P, H, W, 3] RGB to float [P, K, 3] x, y in crop pixels and score.
    """

    skeleton: Skeleton
    size: tuple[int, int]
    pose: Callable[[npt.NDArray[np.uint8]], Array]


def judge_people(
    poser: CropPoser,
    data: CocoSet,
    choice: PeopleChoice,
    *,
    min_joints: int = 1,
    advance: Callable[[], None] = lambda: None,
) -> dict[int, float]:
    """OKS of the network's poses on true boxes, by annotation id.

    Args:
        poser: the network.
        data: the people.
        choice: which joints count (those the network was trained on); others of the data set are not looked at.
        min_joints: people with fewer labelled joints that count are left out.
        advance: called once for each picture.

    Raises:
        DatasetError: a picture is missing; EvaluationError: no joint in common.
    """
    joints = join_joints(data.skeleton, poser.skeleton)
    counted = choice.mask(joints.names)
    similarities: dict[int, float] = {}
    for cuts in _batches(poser, data, list(np.flatnonzero(counted)), joints.in_truth, min_joints, advance):
        answers = poser.pose(np.concatenate([crop for _, _, crop in cuts]))
        for (person, to_picture, _), answer in zip(cuts, answers, strict=True):
            truth = person.keypoints[list(joints.in_truth)]
            found = transform_points(to_picture, np.asarray(answer, np.float64)[list(joints.in_answer), :2])
            labelled = (truth[:, 2] > 0) & counted
            oks = pairwise_oks(truth[None, :, :2], found[None], max(person.area, 1.0), joints.sigmas, labelled[None])
            similarities[person.id] = float(oks[0, 0])
    return similarities


def hard_people(similarities: Mapping[int, float], below: float) -> list[int]:
    """Ids of people whose OKS is below ``below``, ascending."""
    return sorted(number for number, similarity in similarities.items() if similarity < below)


_Cut = tuple[PersonRecord, Array, npt.NDArray[np.uint8]]


def _batches(
    poser: CropPoser,
    data: CocoSet,
    counted: list[int],
    in_truth: tuple[int, ...],
    min_joints: int,
    advance: Callable[[], None],
) -> Iterator[list[_Cut]]:
    """People with their affine from crop to picture and their crop [1, H, W, 3], several pictures together."""
    waiting: list[_Cut] = []
    looked_at = [in_truth[k] for k in counted]
    for image in data.images:
        people = [
            p for p in image.people if not p.crowd and int((p.keypoints[looked_at, 2] > 0).sum()) >= max(min_joints, 1)
        ]
        waiting += _cut(poser, image, people) if people else []
        advance()
        while len(waiting) >= _BATCH:
            yield waiting[:_BATCH]
            waiting = waiting[_BATCH:]
    if waiting:
        yield waiting


def _cut(poser: CropPoser, image: ImageRecord, people: list[PersonRecord]) -> list[_Cut]:
    matrices = box_crop_matrices([person.box for person in people], poser.size)
    crops = crop_people(read_rgb(image.path), matrices, poser.size)
    return [(p, invert_affine(m), crop[None]) for p, m, crop in zip(people, matrices, crops, strict=True)]
