"""Person crops by one affine per person, and the coordinate convention everything shares.

Convention (DESIGN 4.3): a *point* ``x`` is in pixel-index coordinates, the centre of pixel ``i`` is ``i``.
A *box* ``x1 y1 x2 y2`` is in edge coordinates as in COCO, pixel ``i`` covers ``[i, i + 1]``; so the edge
``e`` lies at the point ``e - 0.5``. Heatmap cell ``h`` and crop pixel ``x`` are related by
``x = (h + 0.5) * stride - 0.5``. A mirrored crop (``x -> W - 1 - x``) then gives exactly mirrored heatmaps,
with no shift to undo. Training, export and serving import these functions; there is no second copy.
"""

from __future__ import annotations

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
    return _matrices(np.array([center], np.float64), np.array([extent], np.float64), size, rotation)[0]


def _matrices(centers: Array, extents: Array, size: tuple[int, int], rotation: float = 0.0) -> Array:
    """:func:`crop_matrix` for centres and extents [P, 2]: float64 [P, 2, 3]."""
    shrinks = (extents / size).max(-1)
    usable = np.isfinite(shrinks) & (shrinks > 0)
    if not usable.all():
        raise ValueError(f"crop extent must be positive and finite, got {tuple(extents[~usable][0].tolist())}")
    angle = np.deg2rad(rotation)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrices = np.empty((len(centers), 2, 3))
    matrices[:, :, :2] = linear = turn / shrinks[:, None, None]
    matrices[:, :, 2] = (np.array(size) - 1) / 2 - (linear @ centers[:, :, None])[:, :, 0]
    return matrices


def box_crop_matrices(boxes: npt.ArrayLike, size: tuple[int, int], padding: float = PADDING) -> Array:
    """One crop affine for each box.

    Args:
        boxes: [P, 4] x1 y1 x2 y2 in image edge coordinates; sides below one pixel are widened to one.
        size: width, height of the crops in pixels.
        padding: factor on the box after it got the crop's aspect ratio.

    Returns:
        float64 [P, 2, 3].
    """
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    centers = (corners[:, :2] + corners[:, 2:]) / 2 - 0.5  # edge coordinates to points
    extents = np.maximum(corners[:, 2:] - corners[:, :2], 1.0) * padding
    return _matrices(centers, extents, size)


def transform_points(matrix: Array, points: npt.ArrayLike) -> Array:
    """Apply an affine [2, 3] to points [..., 2]."""
    return np.asarray(points, np.float64) @ matrix[:, :2].T + matrix[:, 2]


def invert_affine(matrix: Array) -> Array:
    """Inverse of an affine [2, 3], as [2, 3]."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.concatenate([linear, -(linear @ matrix[:, 2:])], axis=1)


def crop_levels(matrices: Array) -> npt.NDArray[np.int64]:
    """Which halving of the picture [P] each crop is cut from: the smallest that has its resolution."""
    linear = np.asarray(matrices, np.float64)
    areas = np.abs(linear[:, 0, 0] * linear[:, 1, 1] - linear[:, 0, 1] * linear[:, 1, 0])
    shrinks = 1.0 / np.sqrt(np.maximum(areas, 1e-12))
    return np.where(shrinks > _MAX_SHRINK, np.floor(np.log2(shrinks / _MAX_SHRINK)) + 1, 0).astype(np.int64)


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
    for crop, matrix, level in zip(crops, np.asarray(matrices, np.float64), crop_levels(matrices), strict=True):
        source = pyramid.level(int(level))
        cv2.warpAffine(
            source,
            matrix @ pyramid.placement(source),
            (width, height),
            dst=crop,
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(0, 0, 0),
        )
    return crops
