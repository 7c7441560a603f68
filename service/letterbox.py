"""Letterbox: a picture of any size into the square that a detector takes, and its boxes back.

The picture keeps its aspect ratio, starts at the top left corner and is padded right and below, so a box goes
back by one division. Resizing aligns pixel centres (as ``cv2.resize`` does), so box *edges* scale without an
offset: ``edge' = edge * scale`` (coordinates: see :mod:`service.crops`).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from service.pyramid import Pixels, Pyramid

Array = npt.NDArray[np.float64]

# The grey that YOLO-family detectors pad with: near the mean of photographs, so no strong edge appears.
GREY = 114
BLACK = 0


@dataclass(frozen=True)
class Letterbox:
    """Where a picture lies in its letterbox.

    Attributes:
        width, height: the picture's own size in pixels.
        side: the letterbox's side in pixels.
        inner_width, inner_height: the resized picture's size inside the letterbox.
    """

    width: int
    height: int
    side: int
    inner_width: int
    inner_height: int

    @classmethod
    def fit(cls, width: int, height: int, side: int) -> Letterbox:
        """Largest size with the picture's aspect ratio in a square of ``side``; at least one pixel each way."""
        if width < 1 or height < 1 or side < 1:
            raise ValueError(f"a letterbox needs positive sizes, got {width}x{height} into {side}")
        scale = side / max(width, height)
        return cls(width, height, side, max(1, round(width * scale)), max(1, round(height * scale)))

    @property
    def scale(self) -> Array:
        """float64 [2]: letterbox pixels for one image pixel, x and y (they differ by the rounding to whole pixels)."""
        return np.array([self.inner_width / self.width, self.inner_height / self.height])

    @property
    def matrix(self) -> Array:
        """float64 [2, 3]: image points to letterbox points, on pixel centres."""
        sx, sy = self.scale
        return np.array([[sx, 0.0, 0.5 * sx - 0.5], [0.0, sy, 0.5 * sy - 0.5]])

    def boxes_to_letterbox(self, boxes: npt.ArrayLike) -> Array:
        """Boxes [N, 4] x1 y1 x2 y2 in image edge coordinates to letterbox edge coordinates."""
        return np.asarray(boxes, np.float64).reshape(-1, 4) * np.tile(self.scale, 2)

    def boxes_to_image(self, boxes: npt.ArrayLike) -> Array:
        """Boxes [N, 4] x1 y1 x2 y2 in letterbox edge coordinates to image edge coordinates, clipped to the picture."""
        found = [self.box_to_image(box) for box in np.asarray(boxes, np.float64).reshape(-1, 4).tolist()]
        return np.array(found, np.float64).reshape(-1, 4)

    def box_to_image(self, box: Sequence[float]) -> tuple[float, float, float, float]:
        """One box of :meth:`boxes_to_image`, in plain numbers."""
        width, height = self.width, self.height
        sx, sy = self.inner_width / width, self.inner_height / height
        x1, y1, x2, y2 = box
        return (
            min(max(x1 / sx, 0.0), float(width)),
            min(max(y1 / sy, 0.0), float(height)),
            min(max(x2 / sx, 0.0), float(width)),
            min(max(y2 / sy, 0.0), float(height)),
        )


def letterbox(
    image: Pixels | Pyramid, side: int, *, fill: int = GREY, out: Pixels | None = None
) -> tuple[Pixels, Letterbox]:
    """Resize a picture into a square.

    Args:
        image: uint8 [H, W, 3], or its pyramid.
        side: S, the square's side in pixels.
        fill: grey level of the padding.
        out: uint8 [S, S, 3] to write into (a row of a batch); a new array when None.

    Returns:
        the square uint8 [S, S, 3], and where the picture lies in it.
    """
    pyramid = image if isinstance(image, Pyramid) else Pyramid(image)
    placed = Letterbox.fit(pyramid.width, pyramid.height, side)
    square = np.empty((side, side, 3), np.uint8) if out is None else out
    square[placed.inner_height :] = fill
    square[: placed.inner_height, placed.inner_width :] = fill
    inner = square[: placed.inner_height, : placed.inner_width]
    level = max(pyramid.lowest, halvings(pyramid.width, pyramid.height, side))
    _resize(pyramid.level(level), inner, halved=level > 0)
    return square, placed


def halvings(width: int, height: int, side: int) -> int:
    """How often a picture is halved before the last resize, which then shrinks it by 1.5 to 3: so it is most exact."""
    return max(0, int(math.log2(max(width, height) / side / 1.5)))


def _resize(source: Pixels, target: Pixels, *, halved: bool) -> None:
    """Resize into ``target``, averaging pixels where that is smaller; bilinear sampling would skip some.

    OpenCV averages areas fast only by whole factors (0.9 ms from 640x480 to 384x288). Sampled at twice the size and
    then averaged two by two takes half of that, and the two differ by half a grey level in the mean. Up to a half,
    where sampling skips little, averaging rows alone is enough for the detectors: before the resize where that shrinks
    far enough and the picture was not averaged by halving (0.23 ms), else after it (0.44 ms).
    """
    height, width = target.shape[:2]
    rows, columns = source.shape[:2]
    if width >= columns and height >= rows:
        cv2.resize(source, (width, height), dst=target, interpolation=cv2.INTER_LINEAR)
    elif 2 * width < columns:
        double = _scratch(2 * height, 2 * width)
        cv2.resize(source, (2 * width, 2 * height), dst=double, interpolation=cv2.INTER_LINEAR)
        cv2.resize(double, (width, height), dst=target, interpolation=cv2.INTER_AREA)
    elif 2 * rows >= 3 * height and rows % 2 == 0 and not halved:
        half = _scratch(rows // 2, columns)
        _average_rows(source, half)
        cv2.resize(half, (width, height), dst=target, interpolation=cv2.INTER_LINEAR)
    else:
        double = _scratch(2 * height, width)
        cv2.resize(source, (width, 2 * height), dst=double, interpolation=cv2.INTER_LINEAR)
        _average_rows(double, target)


def _average_rows(source: Pixels, target: Pixels) -> None:
    """Each two rows to their mean."""
    cv2.addWeighted(source[0::2], 0.5, source[1::2], 0.5, 0, dst=target)


_own = threading.local()


def _scratch(height: int, width: int) -> Pixels:
    """A picture [height, width, 3] to write over, the thread's own: a new one costs 300 page faults."""
    size = height * width * 3
    held: Pixels | None = getattr(_own, "pixels", None)
    if held is None or len(held) < size:
        held = _own.pixels = np.empty(size, np.uint8)
    return held[:size].reshape(height, width, 3)
