"""Labels for pictures without any, by the models that are served (CCM's joint training with unlabelled pictures).

Each picture goes through the service's own pipeline, then its mirror image with the mirrored boxes. The two answers
are independent but for the network: a joint that is right is found at the same place both times, a guess seldom is.
A joint is labelled where both scores reach a bound and both places agree, measured as OKS measures a single joint,
``exp(-d^2 / (2 * area * (2 sigma)^2))``; it then lies in the middle of both. A person is labelled when enough joints
are. Nobody knows who else is in the picture, so none is marked as completely labelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

from service import coco
from service.errors import ServiceError
from service.oks import AREA_OF_BOX
from service.options import PoseOptions
from service.people import People
from service.skeletons import Skeleton
from training.answers import AnsweringService, Question, read_document, several_at_a_time
from training.datasets.coco import DatasetError, read_rgb
from training.recipe import Strict

Array = npt.NDArray[np.float64]
JsonObject = dict[str, Any]

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class PseudoLabelRule(Strict):
    """What is taken for true."""

    joint_score: float = Field(0.5, ge=0, le=1, description="lowest score of a joint, in both answers")
    agreement: float = Field(
        0.7, gt=0, le=1, description="lowest similarity of a joint's two places; 1 asks for the very same"
    )
    box_score: float = Field(0.5, ge=0, le=1, description="lowest score of a person's box")
    min_joints: int = Field(6, ge=1, description="people with fewer joints that pass are left out")


@dataclass(frozen=True)
class PseudoLabels:
    """What was labelled.

    Attributes:
        document: COCO JSON, as a recipe's ``annotations`` takes it.
        people: how many were found, labelled or not.
        joints: how many joints they have, labelled or not.
        unusable: pictures that could not be read, with the reason.
    """

    document: JsonObject
    people: int
    joints: int
    unusable: dict[str, str]

    @property
    def labelled_people(self) -> int:
        """People with a label."""
        return len(self.document["annotations"])

    @property
    def labelled_joints(self) -> int:
        """Joints with a label."""
        return sum(person["num_keypoints"] for person in self.document["annotations"])


def list_pictures(folder: Path) -> list[Path]:
    """Pictures of a folder and its sub-folders, sorted. Raises DatasetError when there is none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not found:
        raise DatasetError(f"{folder}: no pictures ({', '.join(_SUFFIXES)})")
    return found


def mirror_boxes(boxes: Array, width: int) -> Array:
    """Boxes [P, 4] x1 y1 x2 y2 of the mirrored picture; edge coordinates."""
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def mirror_keypoints(keypoints: Array, width: int, skeleton: Skeleton) -> Array:
    """Joints [P, K, 3] of the mirrored picture: points ``W - 1 - x``, left and right change names."""
    mirrored = keypoints[:, list(skeleton.flip_permutation)].copy()
    mirrored[..., 0] = width - 1 - mirrored[..., 0]
    return mirrored


def agreed_joints(first: Array, second: Array, boxes: Array, skeleton: Skeleton, rule: PseudoLabelRule) -> Array:
    """Joints that two answers agree on.

    Args:
        first, second: [P, K, 3] x, y, score of the same people.
        boxes: [P, 4] x1 y1 x2 y2.
        skeleton: of the K joints.
        rule: bounds.

    Returns:
        float64 [P, K, 3]: x, y in the middle of both, and the lower score; 0, 0, 0 where they do not agree.
    """
    areas = AREA_OF_BOX * (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    squared = ((first[..., :2] - second[..., :2]) ** 2).sum(-1)
    spread = 2 * np.maximum(areas, 1.0)[:, None] * (2 * np.array(skeleton.sigmas)) ** 2
    score = np.minimum(first[..., 2], second[..., 2])
    agreed = (np.exp(-squared / spread) >= rule.agreement) & (score >= rule.joint_score)
    middle = (first[..., :2] + second[..., :2]) / 2
    return np.where(agreed[..., None], np.concatenate([middle, score[..., None]], -1), 0.0)


async def label_pictures(
    service: AnsweringService,
    folder: Path,
    pictures: Sequence[Path],
    skeleton: Skeleton,
    options: PoseOptions,
    rule: PseudoLabelRule,
    *,
    in_flight: int = 2,
    advance: Callable[[], None] = lambda: None,
) -> PseudoLabels:
    """Label pictures.

    Args:
        service: entered already.
        folder: ``file_name`` is relative to it.
        pictures: the files.
        skeleton: of the model that ``options`` names.
        options: how the service answers; its own ``flip`` is no part of this.
        rule: what is taken for true.
        in_flight: pictures worked on at a time.
        advance: called once for each picture.

    Raises:
        EngineUnavailable and other ServiceErrors that are not about one picture.
    """
    found: dict[int, tuple[tuple[int, int], People, Array]] = {}
    unusable: dict[str, str] = {}

    async def work(index: int) -> None:
        name = pictures[index].relative_to(folder).as_posix()
        try:
            found[index] = await _label(service, pictures[index], index + 1, skeleton, options, rule)
        except DatasetError as error:
            unusable[name] = str(error)
        except ServiceError as error:
            if error.status >= 500:
                raise
            unusable[name] = str(error)
        advance()

    await several_at_a_time(len(pictures), work, in_flight)
    images: list[JsonObject] = []
    annotations: list[JsonObject] = []
    for index in sorted(found):
        (width, height), people, joints = found[index]
        name = pictures[index].relative_to(folder).as_posix()
        images.append(
            {"id": index + 1, "file_name": name, "width": width, "height": height, "all_people_labelled": False}
        )
        annotations += _annotations(index + 1, people, joints, rule, len(annotations) + 1)
    document = {
        "info": {"description": "pseudo-labels", "model": options.model, "service": service.name, **rule.model_dump()},
        "images": images,
        "annotations": annotations,
        "categories": [coco.category(skeleton)],
    }
    people_found = sum(len(people) for _, people, _ in found.values())
    return PseudoLabels(document, people_found, people_found * len(skeleton), unusable)


async def _label(
    service: AnsweringService,
    path: Path,
    number: int,
    skeleton: Skeleton,
    options: PoseOptions,
    rule: PseudoLabelRule,
) -> tuple[tuple[int, int], People, Array]:
    """Size, people over the box score, and their agreed joints [P, K, 3] of one picture."""
    image = await asyncio.to_thread(read_rgb, path)
    data = await asyncio.to_thread(path.read_bytes)
    # Averages with the mirror image would agree with it.
    options = options.model_copy(update={"flip": False})
    answer = read_document(await service.ask(Question(number, path), data, options), 0.0)
    people = answer.people.select(np.flatnonzero(answer.people.box_scores >= rule.box_score))
    size = (answer.width, answer.height)
    if not len(people):
        return size, people, np.zeros((0, len(skeleton), 3))
    # Without loss: what differs between the answers should be the network's doing.
    mirrored = await asyncio.to_thread(_encoded, np.ascontiguousarray(image[:, ::-1]))
    question = Question(number, path, mirror_boxes(people.boxes, answer.width))
    again = read_document(await service.ask(question, mirrored, options), 0.0).people
    second = mirror_keypoints(again.keypoints, answer.width, skeleton)
    return size, people, agreed_joints(people.keypoints, second, people.boxes, skeleton, rule)


def _encoded(image: npt.NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".png", image[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def _annotations(image_id: int, people: People, joints: Array, rule: PseudoLabelRule, first: int) -> list[JsonObject]:
    entries: list[JsonObject] = []
    for box, box_score, score, keypoints in zip(people.boxes, people.box_scores, people.scores, joints, strict=True):
        labelled = keypoints[:, 2] > 0
        if int(labelled.sum()) < rule.min_joints:
            continue
        flat = np.concatenate([keypoints[:, :2].round(2), 2.0 * labelled[:, None]], 1)
        x1, y1, x2, y2 = box.round(2).tolist()
        entries.append(
            {
                "id": first + len(entries),
                "image_id": image_id,
                "category_id": 1,
                "pseudo": True,
                "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
                "area": round(AREA_OF_BOX * (x2 - x1) * (y2 - y1), 2),
                "area_estimated": True,
                "iscrowd": 0,
                "keypoints": [float(v) if k % 3 < 2 else int(v) for k, v in enumerate(flat.ravel())],
                "keypoint_scores": keypoints[:, 2].round(4).tolist(),
                "num_keypoints": int(labelled.sum()),
                "score": round(float(score), 6),
                "box_score": round(float(box_score), 6),
            }
        )
    return entries
