"""A painted layer with coverage, and laying it over a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]


def bytes_array(array: npt.NDArray[Any]) -> Picture:
    """The array itself, with the dtype that OpenCV's annotations lose: uint8 in, uint8 out."""
    return cast(Picture, array)


@dataclass(frozen=True)
class Layer:
    """Something painted, to be laid over a picture.

    Attributes:
        colour: uint8 [h, w, 3] RGB, already multiplied by alpha.
        alpha: uint8 [h, w], 255 opaque.
        origin: x, y of the layer's first pixel in the picture; the layer lies wholly inside.
    """

    colour: Picture
    alpha: npt.NDArray[np.uint8]
    origin: tuple[int, int]

    @property
    def window(self) -> tuple[slice, slice]:
        """The layer's rows and columns in the picture."""
        x, y = self.origin
        return slice(y, y + self.alpha.shape[0]), slice(x, x + self.alpha.shape[1])

    @property
    def solid(self) -> npt.NDArray[np.bool_]:
        """Mask [h, w] of the pixels that are covered by half or more, the ones that count as the object's."""
        return self.alpha >= 128

    def lay_over(self, picture: Picture) -> None:
        """Blend into ``picture`` (RGB uint8 [H, W, 3]), in place."""
        if not self.alpha.size:
            return
        view = picture[self.window]
        behind = cv2.multiply(view, cv2.merge([255 - self.alpha] * 3), scale=1 / 255)
        view[:] = cv2.add(behind, self.colour)


EMPTY_LAYER = Layer(np.zeros((0, 0, 3), np.uint8), np.zeros((0, 0), np.uint8), (0, 0))


class Sketch:
    """A canvas at twice the size for things made of polygons and ellipses.

    Coordinates are shares of the thing's own box: (0, 0) its upper left corner, (1, 1) its lower right one.
    """

    _SHIFT = 4

    def __init__(self, box: tuple[float, float, float, float], size: tuple[int, int]) -> None:
        """``box``: x1, y1, x2, y2 in the picture's pixels; ``size``: width, height of the picture."""
        x1, y1, x2, y2 = box
        self._low = np.clip(np.floor([x1, y1]), 0, size).astype(int)
        high = np.clip(np.ceil([x2, y2]), 0, size).astype(int)
        self._width, self._height = (int(s) for s in np.maximum(high - self._low, 0))
        self._corner = (np.array([x1, y1]) - self._low) * 2
        self._extent = np.array([x2 - x1, y2 - y1]) * 2
        self._canvas = np.zeros((self._height * 2, self._width * 2, 4), np.uint8)

    @property
    def aspect(self) -> float:
        """Width over height of the box."""
        return float(self._extent[0] / self._extent[1])

    def _place(self, points: npt.ArrayLike) -> npt.NDArray[np.int32]:
        pixels = np.asarray(points, np.float64) * self._extent + self._corner - 0.5
        return np.rint(pixels * (1 << self._SHIFT)).astype(np.int32)

    def polygon(self, points: npt.ArrayLike, colour: npt.ArrayLike) -> None:
        """Fill a polygon [n, 2] with an RGB colour."""
        cv2.fillPoly(self._canvas, [self._place(points)], _opaque(colour), cv2.LINE_8, self._SHIFT)

    def rectangle(self, x1: float, y1: float, x2: float, y2: float, colour: npt.ArrayLike) -> None:
        """Fill a rectangle."""
        self.polygon([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], colour)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: npt.ArrayLike, degrees: float = 0.0) -> None:
        """Fill an ellipse; the radii are shares of the box's width and height, the turn is clockwise."""
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        circle = np.stack([rx * self._extent[0] * np.cos(angles), ry * self._extent[1] * np.sin(angles)])
        c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        turned = (np.array([[c, -s], [s, c]]) @ circle).T / self._extent
        self.polygon(turned + np.array([x, y]), colour)

    def shade(self, weights: npt.ArrayLike) -> None:
        """Multiply columns by weights, given at evenly spaced places from left to right."""
        knots = np.asarray(weights, np.float32)
        columns = np.interp(np.linspace(0, 1, max(1, self._canvas.shape[1])), np.linspace(0, 1, len(knots)), knots)
        factor = np.clip(columns * 128, 0, 255).astype(np.uint8)
        rows = np.broadcast_to(factor[None, :, None], (*self._canvas.shape[:2], 3))
        self._canvas[..., :3] = cv2.multiply(self._canvas[..., :3], np.ascontiguousarray(rows), scale=1 / 128)

    def layer(self) -> Layer:
        """The thing at the picture's size."""
        if not self._canvas.size:
            return EMPTY_LAYER
        small = cv2.resize(self._canvas, (self._width, self._height), interpolation=cv2.INTER_AREA)
        small = bytes_array(small).reshape(self._height, self._width, 4)
        return Layer(small[..., :3], small[..., 3], (int(self._low[0]), int(self._low[1])))


def _opaque(colour: npt.ArrayLike) -> tuple[float, float, float, float]:
    red, green, blue = (float(c) for c in np.clip(np.asarray(colour, np.float64), 0, 255))
    return red, green, blue, 255.0
