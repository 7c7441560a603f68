"""CrowdPose's figures: COCO's AP with areas of 0.53 of the box, whole and by how crowded a picture is.

Bounds are those of the evaluation code behind the published figures (xtcocotools: easy below 0.2, hard from 0.8),
not the 0.1 that is also quoted. A part's AP ranks the people of its own pictures only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.answers import EvaluationError, PictureAnswer
from training.datasets.coco import ImageRecord
from training.metrics.coco import CocoFigures, JoinedJoints, keypoint_figures

_BOUNDS = (0.2, 0.8)
PARTS = ("easy", "medium", "hard")


@dataclass(frozen=True)
class CrowdFigures:
    """AP of the three parts (None for one without pictures), and how many pictures are in each."""

    parts: dict[str, CocoFigures | None]
    pictures: dict[str, int]

    name = "crowdpose"

    def summary(self, resamples: int, rng: np.random.Generator) -> dict[str, Any]:
        """As it goes into the report."""
        rows: dict[str, Any] = {}
        for part, found in self.parts.items():
            spread = found.ranking.spread(resamples, rng) if found else None
            rows[part] = {
                "AP": found.figures["AP"] if found else None,
                "spread": spread["AP"] if spread else None,
                "pictures": self.pictures[part],
            }
        return rows


def crowd_part(crowd_index: float) -> str:
    """``easy``, ``medium`` or ``hard``."""
    return PARTS[int(np.searchsorted(_BOUNDS, crowd_index, side="right"))]


def crowd_figures(
    images: Sequence[ImageRecord], answers: Sequence[PictureAnswer], joints: JoinedJoints
) -> CrowdFigures:
    """AP by part. Raises EvaluationError when a picture has no ``crowdIndex``."""
    chosen: dict[str, list[int]] = {part: [] for part in PARTS}
    for k, image in enumerate(images):
        if image.crowd_index is None:
            raise EvaluationError(f"picture {image.id} has no crowdIndex: its part of CrowdPose is not known")
        chosen[crowd_part(image.crowd_index)].append(k)
    parts = {
        part: keypoint_figures([images[k] for k in places], [answers[k] for k in places], joints) if places else None
        for part, places in chosen.items()
    }
    return CrowdFigures(parts, {part: len(places) for part, places in chosen.items()})
