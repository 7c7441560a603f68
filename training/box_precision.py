"""Person-box AP of a detector in training, on pictures that it does not learn from.

A quick look while training runs, one picture at a time; ``python -m training evaluate`` measures what is served.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import nms

from service.letterbox import letterbox
from training.datasets.pictures import Boxes, Picture
from training.networks.detector_base import Detector

Found = tuple[Boxes, Boxes]


@torch.no_grad()
def detect_people(
    network: Detector, pictures: Sequence[Picture], side: int, device: torch.device, *, bf16: bool, iou: float = 0.6
) -> list[Found]:
    """Boxes [D, 4] x1 y1 x2 y2 in each picture's pixels and scores [D], after NMS, as float32."""
    network.eval()
    found = []
    for picture in pictures:
        image, placed = letterbox(picture.image, side)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            boxes, scores = network.detect(torch.from_numpy(image)[None].to(device))
        keep = nms(boxes[0], scores[0], iou)
        inside = placed.boxes_to_image(boxes[0][keep].cpu().numpy())
        found.append((inside.astype(np.float32), scores[0][keep].cpu().numpy()))
    return found


def box_precision(pictures: Sequence[Picture], found: Sequence[Found]) -> dict[str, float]:
    """AP, AP50 and AR as pycocotools counts them; crowds are ignored, areas are those of the boxes."""
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for number, (picture, (boxes, scores)) in enumerate(zip(pictures, found, strict=True), 1):
        for crowd, group in ((0, picture.people), (1, picture.crowds)):
            for box in _as_coco(group):
                entry = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "bbox": box}
                annotations.append({**entry, "area": box[2] * box[3], "iscrowd": crowd})
        for box, score in zip(_as_coco(boxes), scores.tolist(), strict=True):
            results.append({"image_id": number, "category_id": 1, "bbox": box, "score": score})
    if not results:
        return {"AP": 0.0, "AP50": 0.0, "AR": 0.0}
    truth = COCO()
    truth.dataset = {
        "images": [{"id": number} for number in range(1, len(pictures) + 1)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}],
    }
    # pycocotools prints its progress.
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"AP": float(evaluation.stats[0]), "AP50": float(evaluation.stats[1]), "AR": float(evaluation.stats[8])}


def _as_coco(boxes: Boxes) -> list[list[float]]:
    return [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes.tolist()]
