"""Supervision radii: what a head is asked to draw for a joint, and how its raw map becomes ``heatmaps``.

Three kinds (Firefly used the first two; the third is what learns from scratch on little data):

* ``gaussian``: a Gaussian of peak 1, mean squared error; served without what is negative. Peaks a little over 1 stay:
  cut at 1 they would be plateaus, and the highest cell any of them. Only the score is cut, by ``decode``.
* ``disc``: every pixel within the radius is joint, the rest background; binary cross-entropy; served as sigmoid.
* ``softmax``: the normalised Gaussian as a distribution over the map, spatial cross-entropy; served as softmax
  times ``2 pi sigma^2``, so that a map equal to its target has peak 1 as the other kinds have.

All positions are points in crop pixels; heatmap cells relate to them by ``service.crops`` alone.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from service.crops import crop_to_heatmap
from training.recipe import Strict

Kind = Literal["gaussian", "disc", "softmax"]


class Radius(Strict):
    """One head's supervision. ``sigma`` is in heatmap cells; for a disc it is the disc's radius."""

    name: str
    kind: Kind
    sigma: float = Field(gt=0, le=16)
    weight: float = Field(1.0, ge=0, description="weight of this head's loss")


def heatmap_points(points: Tensor, stride: int) -> Tensor:
    """Crop pixels [..., 2] to heatmap cells, in the one convention."""
    # It is affine: applied where the points are, since a copy off the GPU would wait for the whole forward pass.
    zero, one = crop_to_heatmap([0.0, 1.0], stride).tolist()
    return points * (one - zero) + zero


def axis_gaussians(points: Tensor, size: tuple[int, int], sigma: float) -> tuple[Tensor, Tensor]:
    """The two factors of each joint's Gaussian, peak 1 at its exact (not rounded) place.

    Args:
        points: [P, K, 2] in heatmap cells.
        size: height, width of the map.
        sigma: in cells.

    Returns:
        rows [P, K, height], columns [P, K, width].
    """
    rows = torch.arange(size[0], dtype=points.dtype, device=points.device) - points[..., 1:2]
    columns = torch.arange(size[1], dtype=points.dtype, device=points.device) - points[..., 0:1]
    return torch.exp(-rows.square() / (2 * sigma**2)), torch.exp(-columns.square() / (2 * sigma**2))


def gaussian_maps(points: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """[P, K, height, width], peak 1 (where the joint falls on a cell's centre)."""
    rows, columns = axis_gaussians(points, size, sigma)
    return rows.unsqueeze(-1) * columns.unsqueeze(-2)


def disc_maps(points: Tensor, size: tuple[int, int], radius: float) -> Tensor:
    """[P, K, height, width]: 1 where a cell's centre lies within ``radius`` cells of the joint, else 0."""
    rows = (torch.arange(size[0], dtype=points.dtype, device=points.device) - points[..., 1:2]).square()
    columns = (torch.arange(size[1], dtype=points.dtype, device=points.device) - points[..., 0:1]).square()
    return (rows.unsqueeze(-1) + columns.unsqueeze(-2) <= radius**2).to(points.dtype)


def activate(raw: Tensor, radius: Radius) -> Tensor:
    """Raw maps [P, K, H, W] to served heatmaps: float32, not negative, a right joint's peak near 1."""
    raw = raw.float()
    if radius.kind == "gaussian":
        return raw.clamp_min(0.0)
    if radius.kind == "disc":
        return raw.sigmoid()
    flat = raw.flatten(-2).softmax(-1) * (2 * math.pi * radius.sigma**2)
    return flat.clamp(max=1.0).reshape(raw.shape)
