"""Hard-negative people (CCM, "hard-negative person detection mining"): what the detector takes for people and is not.

The served detector looks at training pictures in which everybody is labelled. Its boxes that hold nobody become crops
with empty targets, so that the pose network learns to answer low scores there instead of a confident pose.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from service.engines.base import Engine
from service.letterbox import letterbox
from service.options import PoseOptions
from service.presets import DetectorPreset, detector_preset
from service.steps import select_boxes
from service.suppression import iou_matrix
from training.datasets.coco import CocoSet, ImageRecord, read_rgb

Array = npt.NDArray[np.float64]
# Pictures of one engine call.
_BATCH = 8
# As many boxes of a picture as a request may ask for.
_MOST = 200


@dataclass(frozen=True)
class MiningRule:
    """When a box counts as holding nobody.

    Attributes:
        score: least detector score; None for the threshold that the detector is served with.
        iou: largest IoU with a labelled person.
        inside: largest part of the box that may lie in a labelled person's box (an arm is somebody too), or of a
            person's box in it.
    """

    score: float | None = None
    iou: float = 0.3
    inside: float = 0.5


@dataclass(frozen=True)
class Negative:
    """A false positive: box float64 [4] x1 y1 x2 y2 in image edge coordinates, and the detector's score."""

    image_id: int
    box: Array
    score: float


@dataclass(frozen=True)
class Mined:
    """What was found, and where it was looked for.

    Attributes:
        negatives: best scores first within each picture.
        images: the pictures that were looked at, all of them with everybody labelled.
        boxes: boxes of the detector in them, after its suppression.
    """

    negatives: tuple[Negative, ...]
    images: tuple[ImageRecord, ...]
    boxes: int


def looks_like_measuring(path: Path) -> bool:
    """Whether a file's name says that it is kept for measuring (``val``, ``test``)."""
    return not {"val", "valid", "validation", "test"}.isdisjoint(re.split(r"[^a-z]+", path.stem.lower()))


async def mine_negatives(
    engine: Engine,
    detector: str,
    data: CocoSet,
    rule: MiningRule,
    limit: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Mined:
    """Run a detector over a data set's pictures and keep the boxes that hold nobody.

    Args:
        engine: started.
        detector: the model's name.
        data: its pictures with unlabelled people are left out.
        rule: what counts.
        limit: look at the first so many pictures only.
        advance: called with the number of pictures done.

    Raises:
        DatasetError: a picture that cannot be read.
        ServiceError: no such detector, or it fails.
    """
    preset = detector_preset(await engine.metadata(detector))
    images = [image for image in data.images if image.complete][:limit]
    found: list[Negative] = []
    boxes = 0
    for start in range(0, len(images), _BATCH):
        batch = images[start : start + _BATCH]
        for image, (corners, scores) in zip(batch, await _detect(engine, preset, batch, rule), strict=True):
            boxes += len(corners)
            free = holds_nobody(corners, image, rule)
            found += [Negative(image.id, b, float(s)) for b, s in zip(corners[free], scores[free], strict=True)]
        advance(len(batch))
    return Mined(tuple(found), tuple(images), boxes)


async def _detect(
    engine: Engine, preset: DetectorPreset, images: Sequence[ImageRecord], rule: MiningRule
) -> list[tuple[Array, Array]]:
    """Boxes [P, 4] and scores [P] of each picture, as the service would keep them."""
    least = preset.box_threshold if rule.score is None else rule.score
    options = PoseOptions(box_threshold=least, max_people=_MOST)
    squares, places = zip(*(letterbox(read_rgb(image.path), preset.side) for image in images), strict=True)
    outputs = await engine.infer(preset.name, {"images": np.stack(squares)})
    answers = zip(outputs["boxes"], outputs["scores"], places, strict=True)
    return [select_boxes((boxes, scores), place, options) for boxes, scores, place in answers]


def holds_nobody(boxes: Array, image: ImageRecord, rule: MiningRule) -> npt.NDArray[np.bool_]:
    """Which of boxes [P, 4] hold no labelled person and do not lie in a crowd, bool [P]."""
    people = np.array([p.box for p in image.people if not p.crowd]).reshape(-1, 4)
    crowds = np.array([p.box for p in image.people if p.crowd]).reshape(-1, 4)
    alike = (iou_matrix(boxes, people) > rule.iou).any(1)
    part = (_inside(boxes, people) > rule.inside).any(1) | (_inside(people, boxes) > rule.inside).any(0)
    return np.asarray(~(alike | part | (_inside(boxes, crowds) > rule.inside).any(1)))


def _inside(boxes: Array, regions: Array) -> Array:
    """The part of each box [A, 4] that lies in each region [B, 4], float64 [A, B]."""
    sides = np.minimum(boxes[:, None, 2:], regions[None, :, 2:]) - np.maximum(boxes[:, None, :2], regions[None, :, :2])
    areas = np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(-1), np.finfo(float).tiny)
    return np.asarray(np.clip(sides, 0, None).prod(-1) / areas[:, None])


def as_coco(mined: Mined, data: CocoSet, info: dict[str, Any]) -> dict[str, Any]:
    """A COCO document: every annotation has ``hard_negative`` true, ``num_keypoints`` 0 and the detector's ``score``.

    Pictures without any are left out.
    """
    joints = len(data.skeleton)
    annotations = []
    for number, negative in enumerate(mined.negatives, 1):
        x1, y1, x2, y2 = (round(float(v), 2) for v in negative.box)
        width, height = round(x2 - x1, 2), round(y2 - y1, 2)
        annotations.append(
            {
                "id": number,
                "image_id": negative.image_id,
                "category_id": 1,
                "bbox": [x1, y1, width, height],
                "area": round(width * height, 2),
                "iscrowd": 0,
                "keypoints": [0] * 3 * joints,
                "num_keypoints": 0,
                "hard_negative": True,
                "score": round(negative.score, 4),
            }
        )
    seen = {negative.image_id for negative in mined.negatives}
    root = data.source.images if data.source else None
    images = [
        {
            "id": image.id,
            "file_name": str(image.path.relative_to(root)) if root else image.path.name,
            "width": image.width,
            "height": image.height,
            "all_people_labelled": True,
        }
        for image in mined.images
        if image.id in seen
    ]
    category = {
        "id": 1,
        "name": "person",
        "keypoints": list(data.skeleton.joints),
        "skeleton": [[a + 1, b + 1] for a, b in data.skeleton.edges],
    }
    return {"info": info, "images": images, "annotations": annotations, "categories": [category]}
