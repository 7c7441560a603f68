"""The pipeline's work on pixels and arrays, one plain function for each step; run in the pool of threads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from service.crops import box_crop_matrices, crop_levels, crop_people
from service.errors import InferenceFailed, ServiceError
from service.image_header import ImageHeader, read_header
from service.images import decode_reduced
from service.letterbox import Letterbox, letterbox
from service.options import PoseOptions, Suppression
from service.people import People, keypoints_in_image
from service.presets import DetectorPreset, PosePreset
from service.pyramid import Pyramid
from service.reduction import level_of_boxes, level_to_begin
from service.rescoring import rescore
from service.stages import Stages
from service.suppression import FLOOR, Box, Decay, iou_nms, oks_nms, soft_iou_nms, soft_oks_nms

Pixels = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float64]
# boxes [M, 4] in letterbox pixels and scores [M] of one picture, as a detector answers them.
Candidates = tuple[npt.NDArray[np.floating[Any]], npt.NDArray[np.floating[Any]]]

# Rows that a detector fills its answer up with have score 0, and this is the least that is more in float32.
_NO_PADDING = float(np.finfo(np.float32).smallest_subnormal)


@dataclass(frozen=True)
class Picture:
    """One picture of a request.

    Attributes:
        data: the encoded file.
        id: image_id in the answer.
        boxes: float64 [P, 4] x1 y1 x2 y2 in image edge coordinates: these people are asked for, no detector
            runs and nobody is suppressed; None to detect.
    """

    data: bytes
    id: int
    boxes: Array | None = None


@dataclass(frozen=True)
class Given:
    """One picture of a request on its way: where it stands, what it is, and what is known before it is decoded.

    Attributes:
        index: its place in the request, for errors.
        picture: the file.
        header: its header.
    """

    index: int
    picture: Picture
    header: ImageHeader


@dataclass
class Opened:
    """A decoded picture, and its letterbox when a detector is to see it; decoded anew where that is too small."""

    given: Given
    pyramid: Pyramid
    square: Pixels | None = None
    placed: Letterbox | None = None


@dataclass(frozen=True)
class Crops:
    """The people of a picture who are to be posed.

    Attributes:
        boxes: float64 [P, 4] x1 y1 x2 y2 in image edge coordinates.
        scores: float64 [P] detector scores.
        matrices: float64 [P, 2, 3] image points to crop points.
        pixels: uint8 [P, H, W, 3].
    """

    boxes: Array
    scores: Array
    matrices: Array
    pixels: Pixels


class NamedPicture:
    """``with NamedPicture(index):`` tells an error of one picture which one it was."""

    def __init__(self, index: int) -> None:
        self._index = index

    def __enter__(self) -> None:
        """Nothing to set up."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the index into a passing error."""
        if isinstance(error, ServiceError) and error.image_index is None:
            error.image_index = self._index


def read_headers(pictures: Sequence[Picture], max_bytes: int, max_pixels: int) -> list[ImageHeader]:
    """Every picture's header, checked as :func:`service.image_header.read_header` does; errors name the picture."""
    headers = []
    for index, picture in enumerate(pictures):
        with NamedPicture(index):
            headers.append(read_header(picture.data, max_pixels, max_bytes))
    return headers


def open_picture(given: Given, detector: DetectorPreset, pose: PosePreset, whole: bool, stages: Stages) -> Opened:
    """Decode a picture, and letterbox it for the detector when it brings no boxes.

    Args:
        given: the picture.
        detector, pose: that are to see it: they decide how small it may be decoded.
        whole: decode all of it in any case.
        stages: gets the time.

    Raises:
        InvalidImage: with the picture's index.
    """
    boxes = given.picture.boxes
    if whole:
        level = 0
    elif boxes is None:
        level = level_to_begin(given.header, detector.side, pose.size, pose.padding)
    else:
        level = level_of_boxes(boxes, pose.size, pose.padding)
    pyramid = _decode(given, level, stages)
    if boxes is not None:
        return Opened(given, pyramid)
    with stages.measure("letterbox"):
        return Opened(given, pyramid, *letterbox(pyramid, detector.side))


def _decode(given: Given, level: int, stages: Stages) -> Pyramid:
    with NamedPicture(given.index), stages.measure("decode"):
        return decode_reduced(given.picture.data, given.header, level)


def select_boxes(candidates: Candidates, placed: Letterbox, options: PoseOptions) -> tuple[Array, Array]:
    """A detector's answer for one picture to the boxes that are posed, best first.

    Args:
        candidates: its boxes in letterbox pixels, padded with score 0, and their scores.
        placed: where the picture lies in the letterbox.
        options: ``box_threshold`` (filled in), ``nms_iou``, ``nms_boxes`` and ``max_people`` are used; a score of 0 is
            padding and never kept.

    Returns:
        float64 [P, 4] in image edge coordinates, clipped, at least a pixel wide and high; float64 [P] scores, lowered
        where the suppression is soft.

    Raises:
        InferenceFailed: a box that is not numbers.
    """
    boxes, all_scores = candidates
    # A Python number: all are compared in float64, whatever the detector answers.
    least = max(options.box_threshold or 0.0, _NO_PADDING)
    in_image: list[Box] = []
    scores: list[float] = []
    for index, score in enumerate(all_scores.tolist()):
        if score >= least:
            x1, y1, x2, y2 = box = placed.box_to_image(boxes[index].tolist())
            if x2 - x1 >= 1.0 and y2 - y1 >= 1.0:
                in_image.append(box)
                scores.append(score)
            elif math.isnan(sum(box)):
                raise InferenceFailed(f"the detector answered a box that is not numbers: {boxes[index].tolist()}")
    if options.nms_boxes == "hard":
        kept = iou_nms(in_image, scores, options.nms_iou, options.max_people)
        return _boxes([in_image[index] for index in kept]), np.array([scores[index] for index in kept])
    places, lowered = soft_iou_nms(
        _boxes(in_image),
        scores,
        options.nms_iou,
        method=_decay(options.nms_boxes),
        floor=max(options.box_threshold or 0.0, FLOOR),
        limit=options.max_people,
    )
    return _boxes([in_image[index] for index in places]), lowered


def _boxes(found: Sequence[Box]) -> Array:
    return np.array(found, np.float64).reshape(-1, 4)


def _decay(suppression: Suppression) -> Decay:
    return "linear" if suppression == "soft_linear" else "gaussian"


def cut_crops(opened: Opened, boxes: Array, scores: Array, pose: PosePreset, stages: Stages) -> Crops:
    """Crop all people of a picture, as the pose model wants them; decodes it anew where it lacks their resolution."""
    with stages.measure("crop"):
        matrices = box_crop_matrices(boxes, pose.size, pose.padding)
        level = min(crop_levels(matrices), default=opened.pyramid.lowest)
    if level < opened.pyramid.lowest:
        opened.pyramid = _decode(opened.given, level, stages)
    with stages.measure("crop"):
        return Crops(boxes, scores, matrices, crop_people(opened.pyramid, matrices, pose.size))


def find_crops(opened: Opened, candidates: Candidates, options: PoseOptions, pose: PosePreset, stages: Stages) -> Crops:
    """Suppress a detector's boxes and crop who is left."""
    assert opened.placed is not None, "a detector saw this picture"
    with stages.measure("suppress"):
        boxes, scores = select_boxes(candidates, opened.placed, options)
    return cut_crops(opened, boxes, scores, pose, stages)


def answer_people(
    keypoints: npt.NDArray[np.generic],
    crops: Crops,
    options: PoseOptions,
    pose: PosePreset,
    stages: Stages,
    *,
    suppress: bool,
) -> People:
    """Take joints back to the picture, score the people and drop, or lower the score of, those that are posed twice.

    Args:
        keypoints: [P, K, 3] the model's answer, in crop pixels.
        crops: what the model saw.
        options: ``rescore``, ``nms_oks`` and ``nms_poses`` are used.
        pose: whose answer it is.
        stages: gets the time.
        suppress: False keeps everyone in the given order.

    Raises:
        InferenceFailed: the model answered something that is not finite, or not its skeleton's joints.
    """
    with stages.measure("people"):
        expected = (len(crops.boxes), len(pose.skeleton), 3)
        if keypoints.shape != expected or not np.isfinite(keypoints).all():
            raise InferenceFailed(
                f"model {pose.name!r} answered keypoints {keypoints.shape} that are not finite numbers {expected}"
            )
        joints = keypoints_in_image(keypoints, crops.matrices)
        people = People(crops.boxes, crops.scores, joints, rescore(crops.scores, joints[..., 2], options.rescore))
        if not suppress:
            return people
        sigmas = pose.skeleton.sigmas
        if options.nms_poses == "hard":
            return people.select(oks_nms(joints, people.boxes, people.scores, sigmas, options.nms_oks))
        kept, lowered = soft_oks_nms(
            joints, people.boxes, people.scores, sigmas, options.nms_oks, method=_decay(options.nms_poses)
        )
        return replace(people.select(kept), scores=lowered)
