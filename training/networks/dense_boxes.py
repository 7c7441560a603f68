"""Boxes as a dense detector draws them: a place of a feature map and a distribution of the distance to each side.

Distances are in strides of the place's level. The network says for each side how likely 0, 1 .. B - 1 strides are; the
mean is the distance (Li et al. 2020, "Generalized Focal Loss", eq. 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class DenseOutput(NamedTuple):
    """What a network says of all L places: logits [N, L], sides [N, L, 4 * B]; points [L, 2], strides [L] in pixels."""

    logits: Tensor
    sides: Tensor
    points: Tensor
    strides: Tensor


def places(cells: Sequence[int], strides: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Centres [L, 2] x y in pixels and strides [L] of square levels with so many cells a side: rows, then columns."""
    points, sizes = [], []
    for count, stride in zip(cells, strides, strict=True):
        steps = (torch.arange(count, device=device, dtype=torch.float32) + 0.5) * stride
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        points.append(torch.stack([x, y], -1).reshape(-1, 2))
        sizes.append(torch.full((count * count,), float(stride), device=device))
    return torch.cat(points), torch.cat(sizes)


def boxes_of(sides: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    """Boxes [..., 4] x1 y1 x2 y2 from raw sides [..., 4 * B] at points [..., 2] of strides [...]; not clipped."""
    raw = sides.unflatten(-1, (4, -1))
    steps = torch.arange(raw.shape[-1], device=raw.device, dtype=raw.dtype)
    distances = (raw.softmax(-1) * steps).sum(-1) * strides[..., None]
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], -1)


def sides_of(boxes: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    """Distances [..., 4] in strides from points [..., 2] to the left, top, right, bottom of boxes [..., 4]."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], -1) / strides[..., None]
