"""Rendered scenes as a COCO data set: pictures beside one annotation file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from service.scenes.scene import Scene
from service.skeletons import Skeleton


def scene_to_coco(scene: Scene, *, image_id: int, file_name: str, first_annotation_id: int = 1) -> dict[str, Any]:
    """One scene in COCO's terms.

    Returns:
        ``{"image": {...}, "annotations": [...]}``. Keypoints are points as everywhere in the service (the centre
        of pixel i is i, as in this project's data sets), zeros with v 0; boxes x, y, width, height; the area and
        the ``segmentation`` (uncompressed RLE, holes and all) are those of the visible silhouette.
    """
    height, width = scene.image.shape[:2]
    annotations = []
    for offset, person in enumerate(scene.people):
        keypoints = person.keypoints.round(2)
        keypoints[person.keypoints[:, 2] == 0] = 0
        x1, y1, x2, y2 = person.box.tolist()
        annotations.append(
            {
                "id": first_annotation_id + offset,
                "image_id": image_id,
                "category_id": 1,
                "keypoints": [float(v) if k % 3 < 2 else int(v) for k, v in enumerate(keypoints.ravel())],
                "num_keypoints": int((person.keypoints[:, 2] > 0).sum()),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": person.area,
                "iscrowd": 0,
                "segmentation": {"size": [height, width], "counts": run_lengths(person.mask)},
            }
        )
    image = {"id": image_id, "file_name": file_name, "width": width, "height": height}
    return {"image": image, "annotations": annotations}


def run_lengths(mask: npt.NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed RLE of a mask [H, W]: lengths of runs down the columns, the first one of zeros."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs: list[int] = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return [0, *runs] if flat.size and flat[0] else runs


def coco_category(skeleton: Skeleton) -> dict[str, Any]:
    """COCO's description of a person with this skeleton (its edges count from 1)."""
    return {
        "id": 1,
        "name": "person",
        "supercategory": "person",
        "keypoints": list(skeleton.joints),
        "skeleton": [[a + 1, b + 1] for a, b in skeleton.edges],
    }


def write_coco(scenes: Iterable[Scene], folder: Path, *, quality: int = 92) -> Path:
    """Write scenes to ``folder/images/000001.jpg``... and ``folder/annotations.json``.

    Args:
        scenes: one or more, all of one skeleton; drawn and written one at a time.
        folder: made if it is not there; files of the same names are replaced.
        quality: JPEG quality, or 0 for PNG.

    Returns:
        path of the annotation file. ``file_name`` in it is relative to ``folder/images``.

    Raises:
        ValueError: no scenes, or scenes of several skeletons. OSError where a file cannot be written.
    """
    pictures = folder / "images"
    pictures.mkdir(parents=True, exist_ok=True)
    suffix, parameters = (".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality]) if quality else (".png", [])
    images: list[Any] = []
    annotations: list[Any] = []
    skeleton: Skeleton | None = None
    for index, scene in enumerate(scenes, start=1):
        if skeleton is not None and scene.skeleton != skeleton:
            raise ValueError(f"scenes of two skeletons: {skeleton.name} and {scene.skeleton.name}")
        skeleton = scene.skeleton
        name = f"{index:06d}{suffix}"
        encoded = cv2.imencode(suffix, cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR), parameters)[1]
        (pictures / name).write_bytes(encoded.tobytes())
        entry = scene_to_coco(scene, image_id=index, file_name=name, first_annotation_id=len(annotations) + 1)
        images.append(entry["image"])
        annotations += entry["annotations"]
    if skeleton is None:
        raise ValueError("no scenes to write")
    path = folder / "annotations.json"
    info = {"description": "rendered scenes of tritonpose", "version": "1"}
    data = {"info": info, "images": images, "annotations": annotations, "categories": [coco_category(skeleton)]}
    path.write_text(json.dumps(data, separators=(",", ":")))
    return path
