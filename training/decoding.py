"""Fusion of the radius maps and sub-pixel decoding, in torch operations that export to ONNX.

These functions are what `pose_fusion` is made of; training's own evaluation calls the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Refinement = Literal["none", "quarter", "taylor"]

# Below this a heatmap counts as empty: keeps the logarithm finite, and 1e-12 cubed is still a normal float32.
_FLOOR = 1e-12


def fuse(heatmaps: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Logarithm of the weighted geometric mean of R maps.

    Firefly multiplies the maps, ``prod_r H_r ** w_r``. The geometric mean has its peak at the same place and
    keeps the peak's value comparable whatever the weights are.

    Args:
        heatmaps: R times [P, K, H, W], non-negative.
        weights: [P, R], non-negative, not all zero in a row.

    Returns:
        [P, K, H, W] log of the fused map.
    """
    share = (weights / weights.sum(1, keepdim=True).clamp_min(_FLOOR))[..., None, None]
    # Added map by map: a stack of all maps to be summed costs the exported graph a third of its time.
    fused = heatmaps[0].clamp_min(_FLOOR).log() * share[:, 0:1]
    for index, heatmap in enumerate(heatmaps[1:], start=1):
        fused = fused + heatmap.clamp_min(_FLOOR).log() * share[:, index : index + 1]
    return fused


def decode(log_map: Tensor, stride: int, refinement: Refinement = "taylor") -> Tensor:
    """Peaks of log heatmaps, in crop pixels.

    Args:
        log_map: [P, K, H, W].
        stride: crop pixels for each heatmap cell.
        refinement: ``quarter``: a quarter cell towards the higher neighbour, per axis (Newell et al. 2016);
            ``taylor``: one Newton step on the log map (DARK, Zhang et al. 2020), at most one cell.

    Returns:
        [P, K, 3]: x, y, and the score: the fused map's value at the peak, 0..1.
    """
    height, width = log_map.shape[-2], log_map.shape[-1]
    flat = log_map.flatten(-2)
    best, index = flat.max(-1)
    y = torch.div(index, width, rounding_mode="floor")
    x = index - y * width
    # Derivatives at the peak; at the map's border the nearest inner cell stands in and the step is dropped.
    inner_x, inner_y = x.clamp(1, width - 2), y.clamp(1, height - 2)

    def at(dx: int, dy: int) -> Tensor:
        place = (inner_y + dy) * width + inner_x + dx
        return flat.gather(-1, place.unsqueeze(-1)).squeeze(-1)

    step_x, step_y = torch.zeros_like(best), torch.zeros_like(best)
    if refinement != "none":
        slope_x, slope_y = (at(1, 0) - at(-1, 0)) / 2, (at(0, 1) - at(0, -1)) / 2
        if refinement == "quarter":
            step_x, step_y = slope_x.sign() / 4, slope_y.sign() / 4
        else:
            centre = at(0, 0)
            xx = at(1, 0) - 2 * centre + at(-1, 0)
            yy = at(0, 1) - 2 * centre + at(0, -1)
            xy = (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1)) / 4
            determinant = xx * yy - xy * xy
            # A maximum has a negative definite Hessian; elsewhere a Newton step leads nowhere.
            peaked = (determinant > 1e-6) & (xx < 0) & (yy < 0)
            safe = torch.where(peaked, determinant, torch.ones_like(determinant))
            step_x = torch.where(peaked, (xy * slope_y - yy * slope_x) / safe, step_x).clamp(-1, 1)
            step_y = torch.where(peaked, (xy * slope_x - xx * slope_y) / safe, step_y).clamp(-1, 1)
        interior = (inner_x == x) & (inner_y == y)
        step_x = torch.where(interior, step_x, torch.zeros_like(step_x))
        step_y = torch.where(interior, step_y, torch.zeros_like(step_y))
    crop_x = (x.to(best.dtype) + step_x + 0.5) * stride - 0.5
    crop_y = (y.to(best.dtype) + step_y + 0.5) * stride - 0.5
    return torch.stack([crop_x, crop_y, best.exp()], dim=-1)
