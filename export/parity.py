"""Do the exported models answer what the trained networks answer? Run on an engine, compared with PyTorch.

The reference side runs the networks as training left them, none of the foldings of :mod:`export.pose`; the other
side goes through the embedded engine and the written ``config.pbtxt``, as the service will.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from export.checkpoints import DetectorSource, PoseSource
from service.engines.base import Engine
from service.skeletons import Skeleton
from service.suppression import iou_nms
from training.conventions import flip_shift, unmirrored
from training.decoding import decode, fuse
from training.networks.base import normalise
from training.targets import activate

Array = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]
Boxes = tuple[Array, Array]  # corners [M, 4], scores [M] of one picture

# Rows of the runs; the rest goes in runs of the last size.
BATCHES = (1, 2, 5, 8)
# Boxes below this score decide nothing, and a network that is sure of nothing has none above it: then the best few.
_LEAST_BOX_SCORE = 0.1
_BEST_BOXES = 20
_SERVICE_NMS = 0.6


@dataclass(frozen=True)
class Limits:
    """Largest differences that pass: distances in pixels of the network's input, and of scores."""

    median: float
    p99: float
    score: float = 0.02


POSE_LIMITS = Limits(median=0.5, p99=2.0)
DETECTOR_LIMITS = Limits(median=1.0, p99=3.0)


@dataclass(frozen=True)
class Difference:
    """One comparison: distances in pixels, score differences at the 99th percentile, how many were compared."""

    model: str
    what: str
    count: int
    median: float
    p99: float
    largest: float
    score: float
    limits: Limits

    @property
    def passes(self) -> bool:
        """False also for differences that are not numbers, and when nothing was compared."""
        return bool(
            self.count > 0
            and self.median <= self.limits.median
            and self.p99 <= self.limits.p99
            and self.score <= self.limits.score
        )


def difference(model: str, what: str, distances: Array, scores: Array, limits: Limits) -> Difference:
    """Summary of distances [n] and score differences [n]."""
    if not len(distances):
        return Difference(model, what, 0, np.nan, np.nan, np.nan, np.nan, limits)
    # Without interpolation, so that an infinite distance stays one.
    median, p99 = np.percentile(distances, [50, 99], method="higher")
    return Difference(
        model, what, len(distances), float(median), float(p99), float(distances.max()),
        float(np.percentile(scores, 99, method="higher")), limits,
    )  # fmt: skip


async def check_pose(
    engine: Engine,
    source: PoseSource,
    ensembles: dict[str, str],
    flips: dict[str, str],
    crops: Pixels,
) -> list[Difference]:
    """Compare every preset's ensemble and flip ensemble.

    Args:
        engine: has the exported models loaded.
        source: the trained networks.
        ensembles, flips: names of the ensembles by preset.
        crops: uint8 [P, H, W, 3].
    """
    straight = reference_maps(source, crops)
    mirrored_crops = np.ascontiguousarray(crops[:, :, ::-1])
    partners, shift = source.joints.flip_permutation, flip_shift(source.convention, source.stride)
    mirrored = reference_maps(source, mirrored_crops)
    averaged = [(a + unmirrored(b, partners, shift)) / 2 for a, b in zip(straight, mirrored, strict=True)]
    averaged_mirrored = [(b + unmirrored(a, partners, shift)) / 2 for a, b in zip(straight, mirrored, strict=True)]
    radii = source.radii
    alone = np.eye(len(radii), dtype=np.float32)
    found = []
    for preset in source.presets:
        choices = {"all radii": np.ones(len(radii), np.float32)}
        for radius, row in zip(source.radii, alone, strict=True):
            # The other kinds saturate: which cell of a plateau is its peak, the last digit decides.
            if radius.kind == "softmax" and len(radii) > 1:
                choices[f"{radius.name} alone"] = row
        for what, row in choices.items():
            weights = np.tile(row, (len(crops), 1))
            expected = _keypoints(source, preset, straight, weights)
            answer = await _ask_pose(engine, ensembles[preset.name], crops, weights)
            found.append(_compare_joints(ensembles[preset.name], what, answer, expected))
        flip = flips[preset.name]
        weights = np.ones((len(crops), len(radii)), np.float32)
        answer = await _ask_pose(engine, flip, crops, weights)
        expected = _keypoints(source, preset, averaged, weights)
        found.append(_compare_joints(flip, "all radii", answer, expected))
        again = await _ask_pose(engine, flip, mirrored_crops, weights)
        if shift:
            # Moved by a part of a cell, maps are other maps: their quarter steps differ by a pixel and more.
            answer = _keypoints(source, preset, averaged_mirrored, weights)
        else:
            # Whatever the network: a mirrored crop must give mirrored joints.
            again = again[:, list(preset.flip_permutation)]
            again[..., 0] = source.size[0] - 1 - again[..., 0]
        found.append(_compare_joints(flip, "mirrored crops", again, answer))
    return found


@torch.no_grad()
def reference_maps(source: PoseSource, crops: Pixels) -> list[Tensor]:
    """R heatmaps [P, K, h, w] of the trained networks."""
    chunks = []
    for part in torch.from_numpy(crops).split(BATCHES[-1]):
        maps = []
        for network, recipe in zip(source.networks, source.recipes, strict=True):
            raw = network(normalise(part))[-1]
            maps += [activate(raw[:, index], radius) for index, radius in enumerate(recipe.radii)]
        chunks.append(maps)
    return [torch.cat(maps) for maps in zip(*chunks, strict=True)]


def _keypoints(
    source: PoseSource,
    preset: Skeleton,
    maps: Sequence[Tensor],
    weights: npt.NDArray[np.float32],
) -> Array:
    rows = list(preset.indices_in(source.joints))
    fused = fuse([m[:, rows].double() for m in maps], torch.from_numpy(weights).double())
    return decode(fused, source.stride, source.refinement, sigma=source.sigma, convention=source.convention).numpy()


async def _ask_pose(engine: Engine, model: str, crops: Pixels, weights: npt.NDArray[np.float32]) -> Array:
    answers = [
        (await engine.infer(model, {"crops": crops[rows], "fusion_weights": weights[rows]}))["keypoints"]
        for rows in runs(len(crops))
    ]
    return np.concatenate(answers).astype(np.float64)


def runs(count: int) -> list[slice]:
    """Rows cut into runs of the sizes in ``BATCHES``."""
    found: list[slice] = []
    start = 0
    while start < count:
        size = BATCHES[min(len(found), len(BATCHES) - 1)]
        found.append(slice(start, min(start + size, count)))
        start += size
    return found


def _compare_joints(model: str, what: str, answer: Array, expected: Array) -> Difference:
    distances = np.linalg.norm(answer[..., :2] - expected[..., :2], axis=-1).ravel()
    scores = np.abs(answer[..., 2] - expected[..., 2]).ravel()
    return difference(model, what, distances, scores, POSE_LIMITS)


async def check_detector(engine: Engine, source: DetectorSource, model: str, images: Pixels) -> list[Difference]:
    """Compare the boxes that the service would keep, both ways.

    Args:
        engine: has the exported model loaded.
        source: the trained network.
        model: its name.
        images: uint8 [N, S, S, 3], letterboxed.
    """
    answers, expected = [], []
    for rows in runs(len(images)):
        outputs = await engine.infer(model, {"images": images[rows]})
        answers += list(zip(outputs["boxes"].astype(np.float64), outputs["scores"].astype(np.float64), strict=True))
        with torch.no_grad():
            boxes, scores = source.network.detect(torch.from_numpy(images[rows]))
        expected += list(zip(boxes.double().numpy(), scores.double().numpy(), strict=True))
    pairs = list(zip(expected, answers, strict=True))
    return [
        _compare_boxes(model, "trained in export", pairs),
        _compare_boxes(model, "export in trained", [(b, a) for a, b in pairs]),
    ]


def _compare_boxes(model: str, what: str, pairs: Sequence[tuple[Boxes, Boxes]]) -> Difference:
    """Every kept box of the first side and the nearest box that the second side has at all."""
    distances, scores = [], []
    for (boxes, confidence), (others, other_confidence) in pairs:
        sure = np.flatnonzero(confidence > _LEAST_BOX_SCORE)
        if not len(sure):
            sure = np.argsort(-confidence)[:_BEST_BOXES]
        kept = sure[iou_nms(boxes[sure], confidence[sure], _SERVICE_NMS)]
        apart = np.abs(boxes[kept, None] - others[None]).max(-1)
        nearest = apart.argmin(1)
        distances.append(apart[np.arange(len(kept)), nearest])
        scores.append(np.abs(confidence[kept] - other_confidence[nearest]))
    return difference(model, what, np.concatenate(distances), np.concatenate(scores), DETECTOR_LIMITS)
