"""Person crops by one affine per person, and the coordinate convention everything shares.

Convention (DESIGN 4.3): a *point* ``x`` is in pixel-index coordinates, the centre of pixel ``i`` is ``i``.
A *box* ``x1 y1 x2 y2`` is in edge coordinates as in COCO, pixel ``i`` covers ``[i, i + 1]``; so the edge
``e`` lies at the point ``e - 0.5``. Heatmap cell ``h`` and crop pixel ``x`` are related by
``x = (h + 0.5) * stride - 0.5``. A mirrored crop (``x -> W - 1 - x``) then gives exactly mirrored heatmaps,
with no shift to undo. Training, export and serving import these functions; there is no second copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from service.pyramid import Pyramid

Array = npt.NDArray[np.float64]

# Box to crop: the box is widened to the crop's aspect ratio, then by this factor, so that limbs that stick
# out of a detector's box stay inside (SimpleBaseline and HRNet use 1.25).
PADDING = 1.25
# Bilinear sampling skips pixels when a crop shrinks the picture by more than two: sample a halved picture then.
_MAX_SHRINK = 2.0


def heatmap_to_crop(points: npt.ArrayLike, stride: int) -> Array:
    """Heatmap cells to crop pixels: ``(h + 0.5) * stride - 0.5``, elementwise."""
    return (np.asarray(points, np.float64) + 0.5) * stride - 0.5


def crop_to_heatmap(points: npt.ArrayLike, stride: int) -> Array:
    """Crop pixels to (fractional) heatmap cells; inverse of :func:`heatmap_to_crop`."""
    return (np.asarray(points, np.float64) + 0.5) / stride - 0.5


def crop_matrix(
    center: Sequence[float], extent: Sequence[float], size: tuple[int, int], rotation: float = 0.0
) -> Array:
    """Affine that takes image points to crop points.

    Args:
        center: x, y of the crop's centre in the image, as a point.
        extent: width, height in image pixels that the crop covers; one factor for both axes is used, the
            larger one needed, so the aspect ratio of the picture is kept.
        size: width, height of the crop in pixels.
        rotation: degrees, by which the picture turns clockwise in the crop.

    Returns:
        float64 [2, 3]; ``crop = M[:, :2] @ image + M[:, 2]``.
    """
    (x, y), (width, height) = center, extent
    return np.array(_affine(x, y, width, height, size, rotation))


def _affine(
    x: float, y: float, width: float, height: float, size: tuple[int, int], rotation: float = 0.0
) -> list[list[float]]:
    """:func:`crop_matrix` in plain numbers: for a picture's people half the time of arrays, whose code is not at hand.

    (Right after a network has run, each kind of array operation waits for memory once: 5 to 40 us.)
    """
    shrink = max(width / size[0], height / size[1])
    if not (math.isfinite(shrink) and shrink > 0):
        raise ValueError(f"crop extent must be positive and finite, got {(width, height)}")
    cosine, sine = math.cos(math.radians(rotation)) / shrink, math.sin(math.radians(rotation)) / shrink
    return [
        [cosine, -sine, (size[0] - 1) / 2 - (cosine * x - sine * y)],
        [sine, cosine, (size[1] - 1) / 2 - (sine * x + cosine * y)],
    ]


def box_crop_matrices(boxes: npt.ArrayLike, size: tuple[int, int], padding: float = PADDING) -> Array:
    """One crop affine for each box.

    Args:
        boxes: [P, 4] x1 y1 x2 y2 in image edge coordinates; sides below one pixel are widened to one.
        size: width, height of the crops in pixels.
        padding: factor on the box after it got the crop's aspect ratio.

    Returns:
        float64 [P, 2, 3].
    """
    affines = [
        # Half a pixel less: edge coordinates to points.
        _affine(
            (x1 + x2) / 2 - 0.5, (y1 + y2) / 2 - 0.5, max(x2 - x1, 1.0) * padding, max(y2 - y1, 1.0) * padding, size
        )
        for x1, y1, x2, y2 in np.asarray(boxes, np.float64).reshape(-1, 4).tolist()
    ]
    return np.array(affines, np.float64).reshape(-1, 2, 3)


def transform_points(matrix: Array, points: npt.ArrayLike) -> Array:
    """Apply an affine [2, 3] to points [..., 2]."""
    return np.asarray(points, np.float64) @ matrix[:, :2].T + matrix[:, 2]


def invert_affine(matrix: Array) -> Array:
    """Inverse of an affine [2, 3], as [2, 3]."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.concatenate([linear, -(linear @ matrix[:, 2:])], axis=1)


def crop_levels(matrices: Array) -> list[int]:
    """Which halving of the picture each of the affines [P, 2, 3] cuts from: the smallest that has its resolution."""
    shrinks = [1.0 / math.sqrt(max(abs(a * d - b * c), 1e-12)) for (a, b, _), (c, d, _) in matrices.tolist()]
    return [math.floor(math.log2(one / _MAX_SHRINK)) + 1 if one > _MAX_SHRINK else 0 for one in shrinks]


def crop_people(
    image: npt.NDArray[np.uint8] | Pyramid, matrices: Array, size: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """Cut all persons of one picture.

    Args:
        image: uint8 [H, W, 3], or its pyramid, from the lowest of the :func:`crop_levels` on.
        matrices: [P, 2, 3] image points to crop points.
        size: width, height of the crops.

    Returns:
        uint8 [P, height, width, 3]; black outside the picture.
    """
    width, height = size
    crops = np.empty((len(matrices), height, width, 3), np.uint8)
    pyramid = image if isinstance(image, Pyramid) else Pyramid(image)
    for crop, matrix, level in zip(crops, matrices, crop_levels(matrices), strict=True):
        source = pyramid.level(level)
        cv2.warpAffine(
            source,
            matrix @ pyramid.placement(source) if level else matrix,
            (width, height),
            dst=crop,
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(0, 0, 0),
        )
    return crops
