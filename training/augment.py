"""Augmentation of person crops: where the crop lies (geometry) and how it looks (colour, erasing)."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

from service.crops import PADDING, crop_matrix
from service.skeletons import Skeleton
from training.recipe import Strict

# Upper body for half-body crops (MSPN, HRNet); the rest of a skeleton is the lower body.
_UPPER = ("nose", "eye", "ear", "shoulder", "elbow", "wrist", "head_top", "neck", "thorax")


class Augmentation(Strict):
    """Strengths; zero switches a part off."""

    rotation: float = Field(40.0, ge=0, le=180, description="degrees, uniform in +-rotation")
    rotation_probability: float = Field(0.6, ge=0, le=1)
    scale: float = Field(0.3, ge=0, lt=1, description="crop extent times uniform 1 +- scale")
    shift: float = Field(0.06, ge=0, lt=1, description="crop centre, in parts of the box, uniform +-")
    flip: float = Field(0.5, ge=0, le=1, description="probability of mirroring")
    half_body: float = Field(0.3, ge=0, le=1, description="probability of cutting to upper or lower body")
    half_body_joints: int = Field(8, ge=2, description="only people with more labelled joints than this")
    colour: float = Field(0.4, ge=0, lt=1, description="brightness, contrast, saturation: factor 1 +- colour")
    grey: float = Field(0.05, ge=0, le=1, description="probability of a grey picture")
    blur: float = Field(0.1, ge=0, le=1, description="probability of a blurred picture")
    erase: float = Field(0.3, ge=0, le=1, description="probability of one erased rectangle")


NO_AUGMENTATION = Augmentation(
    rotation=0, rotation_probability=0, scale=0, shift=0, flip=0, half_body=0, half_body_joints=8,
    colour=0, grey=0, blur=0, erase=0,
)  # fmt: skip


def random_crop_matrix(
    box: npt.NDArray[np.float64],
    keypoints: npt.NDArray[np.float64],
    size: tuple[int, int],
    skeleton: Skeleton,
    strength: Augmentation,
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.float64], bool]:
    """Draw one crop of a person.

    Args:
        box: [4] x1 y1 x2 y2, edge coordinates; keypoints: [K, 3].
        size: width, height of the crop.

    Returns:
        affine [2, 3] image points to crop points (before mirroring), and whether to mirror.
    """
    if rng.random() < strength.half_body:
        box = half_body_box(box, keypoints, skeleton, strength.half_body_joints, rng)
    extent = np.maximum(box[2:] - box[:2], 1.0)
    center = (box[:2] + box[2:]) / 2 - 0.5 + rng.uniform(-1, 1, 2) * strength.shift * extent
    factor = PADDING * (1 + strength.scale * rng.uniform(-1, 1))
    turned = rng.random() < strength.rotation_probability
    rotation = strength.rotation * rng.uniform(-1, 1) if turned else 0.0
    # The crop of one-axis extents is widened to the aspect ratio by crop_matrix, as in serving.
    matrix = crop_matrix(center.tolist(), (extent * factor).tolist(), size, rotation)
    return matrix, bool(rng.random() < strength.flip)


def half_body_box(
    box: npt.NDArray[np.float64],
    keypoints: npt.NDArray[np.float64],
    skeleton: Skeleton,
    more_than: int,
    rng: np.random.Generator,
) -> npt.NDArray[np.float64]:
    """Box around the upper or the lower body's labelled joints, widened 1.5 times; ``box`` when too few."""
    labelled = keypoints[:, 2] > 0
    if labelled.sum() <= more_than:
        return box
    upper = np.array([any(part in joint for part in _UPPER) for joint in skeleton.joints])
    chosen = labelled & (upper if rng.random() < 0.6 else ~upper)
    if chosen.sum() < 3:
        return box
    low, high = keypoints[chosen, :2].min(0), keypoints[chosen, :2].max(0)
    center, extent = (low + high) / 2 + 0.5, np.maximum(high - low, 4.0) * 1.5
    return np.concatenate([center - extent / 2, center + extent / 2])


def mirror(
    crop: npt.NDArray[np.uint8], keypoints: npt.NDArray[np.float64], skeleton: Skeleton
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    """Mirror a crop [H, W, 3] and its joints [K, 3]: x becomes W - 1 - x, left and right change names."""
    mirrored = keypoints[list(skeleton.flip_permutation)].copy()
    mirrored[:, 0] = crop.shape[1] - 1 - mirrored[:, 0]
    return np.ascontiguousarray(crop[:, ::-1]), mirrored


def recolour(crop: npt.NDArray[np.uint8], strength: Augmentation, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Colour, grey, blur and one erased rectangle, on uint8 [H, W, 3]."""
    if strength.colour > 0:
        # One 3x3 matrix and an offset do saturation, contrast, brightness and tint in a single pass.
        brightness, contrast, saturation = 1 + strength.colour * rng.uniform(-1, 1, 3)
        if rng.random() < strength.grey:
            saturation = 0.0
        luma = np.array([0.299, 0.587, 0.114])
        mix = saturation * np.eye(3) + (1 - saturation) * np.tile(luma, (3, 1))
        tint = 1 + 0.3 * strength.colour * rng.uniform(-1, 1, 3)
        linear = brightness * contrast * np.diag(tint) @ mix
        offset = brightness * (1 - contrast) * 117.0 * np.ones((3, 1))
        crop = cv2.transform(crop, np.concatenate([linear, offset], axis=1))
    if rng.random() < strength.blur:
        crop = cv2.GaussianBlur(crop, (0, 0), rng.uniform(0.5, 2.0))
    if rng.random() < strength.erase:
        height, width = crop.shape[:2]
        h, w = int(height * rng.uniform(0.08, 0.3)), int(width * rng.uniform(0.08, 0.4))
        y, x = int(rng.integers(0, height - h)), int(rng.integers(0, width - w))
        crop[y : y + h, x : x + w] = rng.integers(0, 256, 3)
    return crop
