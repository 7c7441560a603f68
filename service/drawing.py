"""Skeletons drawn on the picture: left limbs warm, right limbs cool, as seen by the person."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from service.people import PosedPicture
from service.skeletons import Skeleton

Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

# RGB, told apart by people with red-green colour blindness too (Okabe and Ito's orange and sky blue).
LEFT: Colour = (255, 159, 28)
RIGHT: Colour = (46, 160, 255)
MIDDLE: Colour = (140, 230, 130)
_OUTLINE: Colour = (20, 20, 24)
_BOX: Colour = (235, 235, 235)
# Sub-pixel drawing: OpenCV takes coordinates in 1/16 pixels.
_SHIFT = 4
# Line width for a person as high as the picture's shorter side, and its bounds in pixels.
_WIDTH_OF_HEIGHT = 0.011
_MIN_WIDTH, _MAX_WIDTH = 1, 14
# Rows whose colours are swapped at a time.
_STRIP = 64


def draw_people(picture: PosedPicture, skeleton: Skeleton, score_threshold: float, *, in_place: bool = False) -> Pixels:
    """Draw every person's joints over the threshold, limbs between them, box and score.

    Args:
        picture: answered with its pixels.
        skeleton: joints and edges.
        score_threshold: joints below it are not drawn.
        in_place: draw on the picture's own pixels, where they can be written, instead of a copy.

    Returns:
        uint8 [H, W, 3] RGB.
    """
    if picture.pixels is None:
        raise ValueError("the picture was answered without its pixels")
    canvas = picture.pixels if in_place and picture.pixels.flags.writeable else picture.pixels.copy()
    people = picture.people
    # The best last, so that they lie on top.
    for index in reversed(range(len(people))):
        _draw_person(canvas, people.boxes[index], people.keypoints[index], skeleton, score_threshold)
    for box, score in zip(people.boxes, people.scores, strict=True):
        _draw_label(canvas, box, f"{score:.2f}")
    return canvas


def encode_picture(pixels: Pixels, media_type: str, *, overwrite: bool = False) -> bytes:
    """RGB pixels to a PNG (``image/png``) or JPEG (``image/jpeg``) file; ``overwrite``: nobody needs them after."""
    # Level 1 is several times faster than the default 6 and a tenth larger.
    suffix, options = (
        (".png", [cv2.IMWRITE_PNG_COMPRESSION, 1])
        if media_type == "image/png"
        else (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 90])
    )
    bgr = _swap_in_place(pixels) if overwrite else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    coded, data = cv2.imencode(suffix, bgr, options)
    if not coded:
        raise ValueError(f"cannot encode {pixels.shape} as {media_type}")
    return data.tobytes()


def _swap_in_place(pixels: Pixels) -> Pixels:
    # OpenCV would copy all of them first.
    for top in range(0, len(pixels), _STRIP):
        part = pixels[top : top + _STRIP]
        part[...] = cv2.cvtColor(part, cv2.COLOR_RGB2BGR)
    return pixels


def joint_colour(name: str) -> Colour:
    """The colour of a joint by its side."""
    return LEFT if name.startswith("left_") else RIGHT if name.startswith("right_") else MIDDLE


def _edge_colour(first: str, second: str) -> Colour:
    a, b = joint_colour(first), joint_colour(second)
    # A limb has its own side's colour, and what joins both sides is neutral.
    return a if a == b else MIDDLE if MIDDLE not in (a, b) else (a if b == MIDDLE else b)


def _draw_person(
    canvas: Pixels, box: Sequence[float], joints: npt.NDArray[np.float64], skeleton: Skeleton, threshold: float
) -> None:
    size = max(box[2] - box[0], box[3] - box[1])
    width = int(np.clip(round(_WIDTH_OF_HEIGHT * size), _MIN_WIDTH, _MAX_WIDTH))
    # OpenCV draws with 32-bit fixed point: a joint far outside would wrap around.
    points = [tuple(map(int, xy)) for xy in np.clip(joints[:, :2], -30_000, 30_000) * 2**_SHIFT]
    seen = joints[:, 2] >= threshold
    corners = np.round(np.asarray(box)).astype(int).tolist()
    cv2.rectangle(canvas, corners[:2], corners[2:], _BOX, max(1, width // 3), cv2.LINE_AA)
    edges = [(a, b) for a, b in skeleton.edges if seen[a] and seen[b]]
    # A dark rim first: bright limbs stay readable on bright clothes.
    for a, b in edges:
        cv2.line(canvas, points[a], points[b], _OUTLINE, width + 2, cv2.LINE_AA, _SHIFT)
    for a, b in edges:
        colour = _edge_colour(skeleton.joints[a], skeleton.joints[b])
        cv2.line(canvas, points[a], points[b], colour, width, cv2.LINE_AA, _SHIFT)
    radius = (width + 1) << _SHIFT
    for k in np.flatnonzero(seen):
        cv2.circle(canvas, points[k], radius + (1 << _SHIFT), _OUTLINE, cv2.FILLED, cv2.LINE_AA, _SHIFT)
        cv2.circle(canvas, points[k], radius, joint_colour(skeleton.joints[k]), cv2.FILLED, cv2.LINE_AA, _SHIFT)


def _draw_label(canvas: Pixels, box: Sequence[float], text: str) -> None:
    scale = float(np.clip(min(canvas.shape[:2]) / 1000, 0.35, 1.2))
    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    x = int(np.clip(round(box[0]), 0, max(0, canvas.shape[1] - width - 6)))
    y = max(round(box[1]), height + below + 4)
    cv2.rectangle(canvas, (x, y - height - below - 4), (x + width + 6, y), _OUTLINE, cv2.FILLED)
    cv2.putText(canvas, text, (x + 3, y - below - 1), cv2.FONT_HERSHEY_SIMPLEX, scale, _BOX, 1, cv2.LINE_AA)
