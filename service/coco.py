"""Answers as COCO JSON: the document (images, annotations, categories), or the results list that pycocotools reads.

Coordinates are given to a hundredth of a pixel, scores to six digits: more would be noise, and pictures with many
people would be half digits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic_core import to_json

from service import __version__
from service.options import PoseOptions
from service.people import People, PosedPicture
from service.presets import PosePreset
from service.skeletons import Skeleton

JsonObject = dict[str, Any]

_CATEGORY = 1


def document(
    pictures: Sequence[PosedPicture], skeleton: Skeleton, score_threshold: float, info: Mapping[str, object]
) -> JsonObject:
    """The COCO document of an answer.

    Args:
        pictures: answered pictures.
        skeleton: names the joints in ``categories``.
        score_threshold: joint score from which ``v`` is 2 (seen), else 1; coordinates stay either way.
        info: goes into ``info`` unchanged.

    Returns:
        ``{info, images, annotations, categories}``; annotation ids count from 1 over all pictures.
    """
    annotations: list[JsonObject] = []
    for picture in pictures:
        annotations += _annotations(picture, score_threshold, len(annotations) + 1)
    return {
        "info": dict(info),
        "images": [{"id": p.id, "width": p.width, "height": p.height} for p in pictures],
        "annotations": annotations,
        "categories": [category(skeleton)],
    }


def info(options: PoseOptions, pose: PosePreset, engine: str) -> JsonObject:
    """The document's ``info``: what answered, and every option in force."""
    return {
        "description": "tritonpose",
        "version": __version__,
        "engine": engine,
        "model_version": pose.version,
        "detector": pose.detector,
        "skeleton": pose.skeleton.name,
        **options.echo(),
    }


def results(pictures: Sequence[PosedPicture]) -> list[JsonObject]:
    """The bare list for ``loadRes``: one entry for each person, with the joint's score as third value.

    No ``bbox``: ``loadRes`` would then take its area instead of the pose's own extent.
    """
    entries = []
    for picture in pictures:
        joints = _flat(picture.people.keypoints, 4)
        for flat, score in zip(joints, picture.people.scores.round(6).tolist(), strict=True):
            entries.append({"image_id": picture.id, "category_id": _CATEGORY, "keypoints": flat, "score": score})
    return entries


@lru_cache(16)
def category(skeleton: Skeleton) -> JsonObject:
    """COCO's category of a person with that skeleton (edges count from 1 there); everybody's, so not to be changed."""
    return {
        "id": _CATEGORY,
        "name": "person",
        "supercategory": "person",
        "keypoints": list(skeleton.joints),
        "skeleton": [[a + 1, b + 1] for a, b in skeleton.edges],
    }


def encode(answer: object) -> bytes:
    """Compact JSON in UTF-8 (pydantic's encoder: several times faster than the standard library's)."""
    return to_json(answer)


def _annotations(picture: PosedPicture, score_threshold: float, first_id: int) -> list[JsonObject]:
    people: People = picture.people
    joint_scores = people.keypoints[..., 2].round(4)
    joints = _flat(people.keypoints, 2)
    marks = ((joint_scores >= score_threshold) + 1).tolist()  # v is an integer in COCO
    rows = zip(
        joints,
        joint_scores.tolist(),
        marks,
        people.boxes.tolist(),
        people.scores.tolist(),
        people.box_scores.tolist(),
        strict=True,
    )
    annotations = []
    for index, (flat, scores_of_joints, seen, (x1, y1, x2, y2), score, box_score) in enumerate(rows, first_id):
        flat[2::3] = seen
        width, height = x2 - x1, y2 - y1
        annotations.append(
            {
                "id": index,
                "image_id": picture.id,
                "category_id": _CATEGORY,
                "keypoints": flat,
                "keypoint_scores": scores_of_joints,
                # Joints with v = 2: all K are always given, so COCO's v > 0 would say nothing.
                "num_keypoints": seen.count(2),
                "bbox": [round(x1, 2), round(y1, 2), round(width, 2), round(height, 2)],
                "area": round(width * height, 2),
                "iscrowd": 0,
                "score": round(score, 6),
                "box_score": round(box_score, 6),
            }
        )
    return annotations


def _flat(keypoints: npt.NDArray[np.float64], digits: int) -> list[list[float]]:
    """[P, K, 3] to P lists of x, y and a third value, joint after joint."""
    return keypoints.round(digits).reshape(len(keypoints), 3 * keypoints.shape[1]).tolist()
