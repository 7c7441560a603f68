"""How small a picture is decoded: as small as the crops of its people allow.

A person who fills a large photograph is shrunk for the network anyway, so the halvings that come first may be left to
the JPEG decoder. Before the detector has looked nobody knows how large the people are: pictures of which most show
only large ones begin at a reduced level, and those that turn out to show smaller people are decoded once more.
"""

from __future__ import annotations

import numpy as np

from service.crops import Array, box_crop_matrices, crop_levels
from service.image_header import ImageHeader
from service.letterbox import halvings

# Of 555 COCO pictures 56 % show nobody who is smaller than this part of the longer side. At a half, 12 megapixels
# then take 24 ms, or 24 + 50 where one of them is smaller, instead of 50: the less, the more large people there are.
_LIKELY = 0.13
_MOST = 3


def level_of_boxes(boxes: Array, size: tuple[int, int], padding: float) -> int:
    """The halving that crops of these boxes [P, 4] need at least; the largest there is for nobody.

    Args:
        boxes: x1 y1 x2 y2 in image edge coordinates.
        size, padding: of the crops, as for :func:`service.crops.box_crop_matrices`.
    """
    return min(crop_levels(box_crop_matrices(boxes, size, padding)), default=_MOST)


def level_to_begin(header: ImageHeader, side: int, size: tuple[int, int], padding: float) -> int:
    """The halving at which a picture is decoded for the detector's square of ``side`` and the likely crops of it."""
    most = halvings(header.width, header.height, side)
    if most == 0:
        return 0
    likely = np.array([[0.0, 0.0, 1.0, _LIKELY * max(header.width, header.height)]])
    return min(level_of_boxes(likely, size, padding), most)
