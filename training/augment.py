"""Augmentation of person crops: strengths, and what is drawn for each crop of a batch before any pixel is touched.

Drawing is float64 on the CPU and costs microseconds; pixels are moved by ``training.datasets`` and changed by
``training.recolour``, wherever the batch lies. The crop's geometry is ``service.crops.crop_matrix``, as in serving.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from service.crops import PADDING, crop_matrix
from service.skeletons import Skeleton
from training.recipe import Strict

Floats = npt.NDArray[np.float64]
T = TypeVar("T", bound=np.generic)

# Upper body for half-body crops (MSPN, HRNet); the rest of a skeleton is the lower body.
_UPPER = ("nose", "eye", "ear", "shoulder", "elbow", "wrist", "head_top", "neck", "thorax")
# Random numbers that one crop uses: those of _Numbers, then those of draw_looks.
NUMBERS = 25


class Augmentation(Strict):
    """Strengths; zero switches a part off."""

    rotation: float = Field(40.0, ge=0, le=180, description="degrees, uniform in +-rotation")
    rotation_probability: float = Field(0.6, ge=0, le=1)
    scale: float = Field(0.3, ge=0, lt=1, description="crop extent times uniform 1 +- scale")
    widen: tuple[float, float] = Field(
        (0.0, 0.0), description="box width and height times uniform 1 to 1 + widen (MSPN, RSN: 0.6, 0.8)"
    )
    shift: float = Field(0.06, ge=0, lt=1, description="crop centre, in parts of the box, uniform +-")
    flip: float = Field(0.5, ge=0, le=1, description="probability of mirroring")
    half_body: float = Field(0.3, ge=0, le=1, description="probability of cutting to upper or lower body")
    half_body_joints: int = Field(8, ge=2, description="only people with more labelled joints than this")
    colour: float = Field(0.4, ge=0, lt=1, description="brightness, contrast, saturation: factor 1 +- colour")
    grey: float = Field(0.05, ge=0, le=1, description="probability of a grey picture")
    blur: float = Field(0.1, ge=0, le=1, description="probability of a blurred picture")
    erase: float = Field(0.3, ge=0, le=1, description="probability of one erased rectangle")

    @property
    def reach(self) -> float:
        """How many boxes (of the crop's aspect ratio) the largest crop covers along one axis, when not turned."""
        return PADDING * (1 + self.scale) * (1 + max(self.widen)) + 2 * self.shift


NO_AUGMENTATION = Augmentation(
    rotation=0, rotation_probability=0, scale=0, shift=0, flip=0, half_body=0, half_body_joints=8,
    colour=0, grey=0, blur=0, erase=0,
)  # fmt: skip


class _Numbers(NamedTuple):
    """One crop's uniform numbers by their use."""

    half_body: float
    upper: float
    shift_x: float
    shift_y: float
    scale: float
    widen_x: float
    widen_y: float
    turned: float
    rotation: float
    flip: float


@dataclass(frozen=True)
class Looks:
    """What is done to the pixels of P crops.

    Attributes:
        colour: float32 [P, 3, 4], RGB to RGB and an offset; None when colours stay.
        blur: float32 [P], the Gaussian's sigma in pixels, 0 for none.
        erased: int64 [P, 4], x1 y1 x2 y2 of a rectangle (half open), empty for none.
        fill: uint8 [P, 3], its colour.
    """

    colour: npt.NDArray[np.float32] | None
    blur: npt.NDArray[np.float32]
    erased: npt.NDArray[np.int64]
    fill: npt.NDArray[np.uint8]


def draw_geometry(
    boxes: Floats,
    keypoints: Floats,
    size: tuple[int, int],
    skeleton: Skeleton,
    strength: Augmentation,
    numbers: Floats,
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Where the crops lie.

    Args:
        boxes: [P, 4] x1 y1 x2 y2, edge coordinates.
        keypoints: [P, K, 3], v = 0 where not labelled.
        size: width, height of the crops.
        skeleton: of the K joints.
        strength: what is varied, and how far.
        numbers: [P, NUMBERS] uniform in [0, 1).

    Returns:
        affine [P, 2, 3] image points to crop points, mirroring included; [P] whether mirrored (left and right
        then change names: :func:`mirror_names`).
    """
    matrices = np.empty((len(boxes), 2, 3))
    mirrored = numbers[:, _Numbers._fields.index("flip")] < strength.flip
    mirror = np.array([[-1.0, 0, size[0] - 1], [0, 1, 0]])
    for place, (box, joints, row) in enumerate(zip(boxes, keypoints, numbers, strict=True)):
        u = _Numbers(*row[: len(_Numbers._fields)])
        if u.half_body < strength.half_body:
            box = half_body_box(box, joints, skeleton, strength.half_body_joints, u.upper)
        extent = np.maximum(box[2:] - box[:2], 1.0)
        shift = (2 * np.array([u.shift_x, u.shift_y]) - 1) * strength.shift * extent
        center = (box[:2] + box[2:]) / 2 - 0.5 + shift
        widened = extent * (1 + np.array([u.widen_x, u.widen_y]) * strength.widen)
        factor = PADDING * (1 + strength.scale * (2 * u.scale - 1))
        rotation = strength.rotation * (2 * u.rotation - 1) if u.turned < strength.rotation_probability else 0.0
        # The crop of one-axis extents is widened to the aspect ratio by crop_matrix, as in serving.
        matrix = crop_matrix(center.tolist(), (widened * factor).tolist(), size, rotation)
        matrices[place] = compose(mirror, matrix) if mirrored[place] else matrix
    return matrices, mirrored


def half_body_box(box: Floats, keypoints: Floats, skeleton: Skeleton, more_than: int, number: float) -> Floats:
    """Box around the upper or the lower body's labelled joints, widened 1.5 times; ``box`` when too few.

    ``number`` is uniform in [0, 1): six of ten are upper bodies.
    """
    labelled = keypoints[:, 2] > 0
    if labelled.sum() <= more_than:
        return box
    upper = np.array([any(part in joint for part in _UPPER) for joint in skeleton.joints])
    chosen = labelled & (upper if number < 0.6 else ~upper)
    if chosen.sum() < 3:
        return box
    low, high = keypoints[chosen, :2].min(0), keypoints[chosen, :2].max(0)
    center, extent = (low + high) / 2 + 0.5, np.maximum(high - low, 4.0) * 1.5
    return np.concatenate([center - extent / 2, center + extent / 2])


def mirror_names(joints: npt.NDArray[T], mirrored: npt.NDArray[np.bool_], skeleton: Skeleton) -> npt.NDArray[T]:
    """Joints [P, K, ...] with left and right exchanged in the crops that are mirrored."""
    swapped = joints[:, list(skeleton.flip_permutation)]
    return np.where(mirrored.reshape(-1, *[1] * (joints.ndim - 1)), swapped, joints)


def compose(outer: Floats, inner: Floats) -> Floats:
    """The affine [2, 3] that does ``inner`` first."""
    linear = outer[:, :2] @ inner[:, :2]
    return np.concatenate([linear, (outer[:, :2] @ inner[:, 2] + outer[:, 2])[:, None]], axis=1)


def draw_looks(size: tuple[int, int], strength: Augmentation, numbers: Floats) -> Looks:
    """How the crops look: colour, grey, blur, one erased rectangle. ``numbers``: [P, NUMBERS] uniform in [0, 1)."""
    rest = numbers[:, len(_Numbers._fields) :]
    colour = _colours(strength, rest[:, :7]) if strength.colour > 0 or strength.grey > 0 else None
    blur = np.where(rest[:, 7] < strength.blur, 0.5 + 1.5 * rest[:, 8], 0.0).astype(np.float32)
    width, height = size
    h = (height * (0.08 + 0.22 * rest[:, 10])).astype(np.int64)
    w = (width * (0.08 + 0.32 * rest[:, 11])).astype(np.int64)
    y, x = (rest[:, 12] * (height - h)).astype(np.int64), (rest[:, 13] * (width - w)).astype(np.int64)
    chosen = rest[:, 9] < strength.erase
    erased = np.where(chosen[:, None], np.stack([x, y, x + w, y + h], axis=1), 0)
    # One number gives the three channels: its first, next and last eight bits.
    levels = (rest[:, 14] * 2**24).astype(np.int64)
    fill = (levels[:, None] >> np.array([16, 8, 0]) & 255).astype(np.uint8)
    return Looks(colour, blur, erased, fill)


def _colours(strength: Augmentation, numbers: Floats) -> npt.NDArray[np.float32]:
    """One 3x3 matrix and an offset do saturation, contrast, brightness and tint in a single pass."""
    change = 1 + strength.colour * (2 * numbers[:, :3] - 1)
    brightness, contrast, saturation = change.T
    saturation = np.where(numbers[:, 3] < strength.grey, 0.0, saturation)[:, None, None]
    luma = np.tile([0.299, 0.587, 0.114], (3, 1))
    mix = saturation * np.eye(3) + (1 - saturation) * luma
    tint = 1 + 0.3 * strength.colour * (2 * numbers[:, 4:7] - 1)
    linear = (brightness * contrast)[:, None, None] * tint[:, :, None] * mix
    offset = (brightness * (1 - contrast) * 117.0)[:, None, None] * np.ones((1, 3, 1))
    return np.concatenate([linear, offset], axis=2).astype(np.float32)
