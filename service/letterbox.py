"""Letterbox: a picture of any size into the square that a detector takes, and its boxes back.

The picture keeps its aspect ratio, starts at the top left corner and is padded right and below, so a box goes
back by one division. Resizing aligns pixel centres (as ``cv2.resize`` does), so box *edges* scale without an
offset: ``edge' = edge * scale`` (coordinates: see :mod:`service.crops`).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]

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
        mapped = np.asarray(boxes, np.float64).reshape(-1, 4) / np.tile(self.scale, 2)
        return np.clip(mapped, 0.0, np.array([self.width, self.height] * 2, np.float64))


def letterbox(image: Pixels, side: int, *, fill: int = GREY, out: Pixels | None = None) -> tuple[Pixels, Letterbox]:
    """Resize a picture into a square.

    Args:
        image: uint8 [H, W, 3].
        side: S, the square's side in pixels.
        fill: grey level of the padding.
        out: uint8 [S, S, 3] to write into (a row of a batch); a new array when None.

    Returns:
        the square uint8 [S, S, 3], and where the picture lies in it.
    """
    height, width = image.shape[:2]
    placed = Letterbox.fit(width, height, side)
    square = np.empty((side, side, 3), np.uint8) if out is None else out
    square[placed.inner_height :] = fill
    square[: placed.inner_height, placed.inner_width :] = fill
    shrinks = placed.inner_width < width or placed.inner_height < height
    if (factor := _whole_factor(placed)) > 1:
        image = cv2.resize(image, (width // factor, height // factor), interpolation=cv2.INTER_AREA)
    square[: placed.inner_height, : placed.inner_width] = cv2.resize(
        image,
        (placed.inner_width, placed.inner_height),
        # Area averaging keeps small people when a picture shrinks; bilinear sampling would skip their pixels.
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
    )
    return square, placed


def _whole_factor(placed: Letterbox) -> int:
    """Largest whole factor to shrink by first, leaving at least a factor of two to the real resize; 1 for none.

    OpenCV averages by whole factors four times faster: 12 megapixels in 50 instead of 200 ms. Only factors that
    divide both sides keep the pixel centres exact; sizes of cameras have many.
    """
    most = placed.width // (2 * placed.inner_width)
    return next((f for f in range(most, 1, -1) if placed.width % f == placed.height % f == 0), 1)
