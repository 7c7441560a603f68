"""People as coloured cards, and a fake engine that finds them by their colours: the truth of every answer is known.

A card is a blue rectangle (its blue level is the detector's score) with a red, a green and a yellow disc: the
three joints. The fake models see only what the service hands them, letterboxed and cropped, so a mistake in any
coordinate shows up in the answer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from service.engines.base import Array, ModelMetadata, Tensors, TensorSpec
from service.engines.fake import FakeEngine, FakeModel
from service.skeletons import Skeleton

SIDE, WIDTH, HEIGHT = 128, 96, 128
MOST = 8
SKELETON = Skeleton("card3", ("nose", "left_wrist", "right_wrist"), ((0, 1), (0, 2)), (0.026, 0.062, 0.062))
RED, GREEN, YELLOW = (255, 0, 0), (0, 255, 0), (255, 255, 0)


@dataclass(frozen=True)
class Card:
    """A person: x, y, width, height in whole pixels, detector score, joints as parts of the box."""

    x: int
    y: int
    width: int
    height: int
    score: float = 0.9
    joints: tuple[tuple[float, float], ...] = ((0.5, 0.2), (0.75, 0.6), (0.25, 0.6))

    @property
    def points(self) -> npt.NDArray[np.float64]:
        """[3, 2] joints as points of the picture."""
        corner, size = np.array([self.x, self.y]), np.array([self.width, self.height])
        return np.floor(np.array(self.joints) * size) + corner


def paint(cards: Sequence[Card], size: tuple[int, int] = (320, 240)) -> npt.NDArray[np.uint8]:
    """RGB uint8 [H, W, 3]."""
    picture = np.full((size[1], size[0], 3), 60, np.uint8)
    for card in cards:
        blue = round(card.score * 200)
        cv2.rectangle(picture, (card.x, card.y, card.width, card.height), (0, 0, 55 + blue), -1)
        for point, colour in zip(card.points, (RED, GREEN, YELLOW), strict=True):
            cv2.circle(picture, tuple(map(int, point)), max(2, card.width // 12), colour, -1)
    return picture


def encode(picture: npt.NDArray[np.uint8], suffix: str = ".png") -> bytes:
    """An image file; PNG keeps the colours exactly."""
    return cv2.imencode(suffix, picture[:, :, ::-1])[1].tobytes()


def detect(inputs: Tensors) -> dict[str, Array]:
    """Boxes of the blue cards in each letterbox, twice each (a detector answers before the NMS)."""
    images = np.asarray(inputs["images"]).astype(int)
    boxes = np.zeros((len(images), MOST, 4), np.float32)
    scores = np.zeros((len(images), MOST), np.float32)
    for n, image in enumerate(images):
        card = (image.max(-1) - image.min(-1) > 60).astype(np.uint8)
        count, _, stats, _ = cv2.connectedComponentsWithStats(card)
        for m in range(min(count - 1, MOST // 2)):
            x, y, w, h, _ = stats[m + 1]
            patch = image[y : y + h, x : x + w]
            blue = patch[..., 2][patch[..., 2] > patch[..., 0] + 30]
            if not len(blue):  # a colourful thing in another picture
                continue
            boxes[n, 2 * m] = (x, y, x + w, y + h)
            scores[n, 2 * m] = np.clip((np.median(blue) - 55) / 200, 0, 1)
            boxes[n, 2 * m + 1] = (x + 1, y, x + w, y + h)
            scores[n, 2 * m + 1] = scores[n, 2 * m] * 0.9
    return {"boxes": boxes, "scores": scores}


def find_joints(inputs: Tensors) -> dict[str, Array]:
    """Centroids of the coloured discs in each crop; a joint that is not there gets score 0.01."""
    crops = np.asarray(inputs["crops"]).astype(float)
    keypoints = np.zeros((len(crops), 3, 3), np.float32)
    ys, xs = np.mgrid[:HEIGHT, :WIDTH]
    for p, crop in enumerate(crops):
        r, g, b = crop[..., 0], crop[..., 1], crop[..., 2]
        lack = 255 - b
        for k, mask in enumerate((r > g + 90, g > r + 90, np.minimum(r, g) > b + 90)):
            strength = lack * (mask if k else mask & (lack > 100))
            total = strength.sum()
            keypoints[p, k] = (
                ((xs * strength).sum() / total, (ys * strength).sum() / total, 0.8) if total else (0, 0, 0.01)
            )
    return {"keypoints": keypoints}


def metadata(
    name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], **parameters: object
) -> ModelMetadata:
    """A config of the contract's form."""
    texts = {key: str(value) for key, value in parameters.items()}
    return ModelMetadata(name, (1,), "onnxruntime_onnx", 8, tuple(inputs), tuple(outputs), texts)


def card_engine(**changes: object) -> FakeEngine:
    """Detector, pose model (two radii) and its flip variant; ``changes`` go into the pose model's parameters."""
    crops = (TensorSpec("crops", "uint8", (HEIGHT, WIDTH, 3)), TensorSpec("fusion_weights", "float32", (2,)))
    keypoints = (TensorSpec("keypoints", "float32", (3, 3)),)
    parameters: dict[str, object] = {
        "kind": "pose", "skeleton": SKELETON.to_json(), "input_width": WIDTH, "input_height": HEIGHT,
        "radii": "large,small", "detector": "person_detector", "padding": 1.25, "score_threshold": 0.3,
        "flip_model": "pose_flip", **changes,
    }  # fmt: skip
    detector = metadata(
        "person_detector",
        [TensorSpec("images", "uint8", (SIDE, SIDE, 3))],
        [TensorSpec("boxes", "float32", (MOST, 4)), TensorSpec("scores", "float32", (MOST,))],
        kind="detector", input_size=SIDE, box_threshold=0.25,
    )  # fmt: skip
    return FakeEngine(
        {
            "person_detector": FakeModel(detector, detect),
            "pose": FakeModel(metadata("pose", crops, keypoints, **parameters), find_joints),
            "pose_flip": FakeModel(
                metadata("pose_flip", crops, keypoints, **{**parameters, "kind": "pose_flip"}), find_joints
            ),
        }
    )


def as_json(body: bytes) -> dict[str, object]:
    """Parsed JSON; refuses NaN."""
    return json.loads(body, parse_constant=lambda name: (_ for _ in ()).throw(ValueError(name)))
