"""A picture and its halvings, each made when it is first asked for: letterbox and crops share them.

A picture may begin at a halving: JPEG files decode to a half or a quarter in half the time, and whoever then needs
more asks for a level that is not there (see :mod:`service.reduction`).
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


class Pyramid:
    """One picture at several sizes: level 0 is the whole one, each further level half as wide and as high.

    Attributes:
        width, height: of the whole picture, whatever level is there.
        lowest: the largest picture that is there.
    """

    def __init__(self, pixels: Pixels, lowest: int = 0) -> None:
        """``pixels`` uint8 [H, W, 3] is level ``lowest``, each of its pixels 2^lowest of the whole picture's."""
        self.lowest = lowest
        self.height, self.width = (side << lowest for side in pixels.shape[:2])
        self._levels = [np.ascontiguousarray(pixels)]

    def level(self, number: int) -> Pixels:
        """The picture halved ``number`` times, or as often as it can be; ValueError below ``lowest``.

        Odd sides lose half a pixel: :meth:`placement` says where the pixels are.
        """
        if number < self.lowest:
            raise ValueError(f"level {number} of a picture that begins at {self.lowest}")
        levels = self._levels
        while len(levels) <= number - self.lowest and min(levels[-1].shape[:2]) >= 2:
            height, width = levels[-1].shape[:2]
            # Two by two pixels, exactly, for even sides: 0.06 ms for 640x480.
            half = cv2.resize(levels[-1], (width // 2, height // 2), interpolation=cv2.INTER_AREA)
            levels.append(np.asarray(half, np.uint8))
        return levels[min(number - self.lowest, len(levels) - 1)]

    def placement(self, pixels: Pixels) -> npt.NDArray[np.float64]:
        """Affine float64 [3, 3] from the points (pixel centres) of a level's pixels to those of the whole picture."""
        fx, fy = self.width / pixels.shape[1], self.height / pixels.shape[0]
        return np.array([[fx, 0, 0.5 * fx - 0.5], [0, fy, 0.5 * fy - 0.5], [0, 0, 1]])
