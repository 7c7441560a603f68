"""Fusion of the radius maps and sub-pixel decoding, in torch operations that export to ONNX.

These functions are what `pose_fusion` is made of; training's own evaluation calls the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from training.conventions import Convention, cells_to_crop

Refinement = Literal["none", "quarter", "megvii", "taylor", "dark"]

# Below this a heatmap counts as empty: keeps the logarithm finite, and 1e-12 cubed is still a normal float32.
_FLOOR = 1e-12
# OpenCV's fixed table for five cells, which MSPN's and RSN's own code filters with.
_FIVE = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


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


def decode(
    log_map: Tensor,
    stride: int,
    refinement: Refinement = "taylor",
    *,
    sigma: float = 2.0,
    convention: Convention = "pixel_centre",
) -> Tensor:
    """Peaks of log heatmaps, in crop pixels.

    Args:
        log_map: [P, K, H, W].
        stride: crop pixels for each heatmap cell.
        refinement: the step from the highest cell to the peak.
            ``quarter``: a quarter cell towards the higher neighbour, per axis (Newell et al. 2016);
            ``megvii``: the map filtered with a Gaussian of 5 cells, then a quarter cell towards the second highest
            cell, wherever it is (CPN, MSPN and RSN);
            ``taylor``: one Newton step on the log map, at most one cell;
            ``dark``: the same on the log of the filtered map (DARK, Zhang et al. 2020).
        sigma: for ``dark``, of the filter: the sigma of the Gaussians trained on, in cells.
        convention: where a cell lies in the crop, see :mod:`training.conventions`.

    Returns:
        [P, K, 3]: x, y, and the score: the fused map's value at the peak (unfiltered), cut at 1.
    """
    width = log_map.shape[-1]
    best, index = log_map.flatten(-2).max(-1)
    if refinement == "megvii":
        y, x, step_x, step_y = _towards_second(filtered(log_map.exp(), _FIVE))
    else:
        y = torch.div(index, width, rounding_mode="floor")
        x = index - y * width
        step_x, step_y = torch.zeros_like(best), torch.zeros_like(best)
        if refinement == "dark":
            smooth = filtered(log_map.exp(), gaussian_taps(sigma)).clamp_min(_FLOOR).log()
            step_x, step_y = _local_step(smooth, x, y, newton=True)
        elif refinement != "none":
            step_x, step_y = _local_step(log_map, x, y, newton=refinement == "taylor")
    crop_x = cells_to_crop(x.to(best.dtype) + step_x, width, stride, convention)
    crop_y = cells_to_crop(y.to(best.dtype) + step_y, log_map.shape[-2], stride, convention)
    return torch.stack([crop_x, crop_y, best.exp().clamp(max=1)], dim=-1)


def _local_step(log_map: Tensor, x: Tensor, y: Tensor, *, newton: bool) -> tuple[Tensor, Tensor]:
    """Newton's step from cells x, y [P, K] of a map [P, K, H, W], or a quarter cell; none from the map's border."""
    height, width = log_map.shape[-2], log_map.shape[-1]
    flat = log_map.flatten(-2)
    # At the map's border the nearest inner cell stands in and the step is dropped.
    inner_x, inner_y = x.clamp(1, width - 2), y.clamp(1, height - 2)

    def at(dx: int, dy: int) -> Tensor:
        place = (inner_y + dy) * width + inner_x + dx
        return flat.gather(-1, place.unsqueeze(-1)).squeeze(-1)

    slope_x, slope_y = (at(1, 0) - at(-1, 0)) / 2, (at(0, 1) - at(0, -1)) / 2
    if newton:
        centre = at(0, 0)
        xx = at(1, 0) - 2 * centre + at(-1, 0)
        yy = at(0, 1) - 2 * centre + at(0, -1)
        xy = (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1)) / 4
        determinant = xx * yy - xy * xy
        # A maximum has a negative definite Hessian; elsewhere a Newton step leads nowhere.
        peaked = (determinant > 1e-6) & (xx < 0) & (yy < 0)
        safe = torch.where(peaked, determinant, torch.ones_like(determinant))
        step_x = torch.where(peaked, (xy * slope_y - yy * slope_x) / safe, torch.zeros_like(safe)).clamp(-1, 1)
        step_y = torch.where(peaked, (xy * slope_x - xx * slope_y) / safe, torch.zeros_like(safe)).clamp(-1, 1)
    else:
        step_x, step_y = slope_x.sign() / 4, slope_y.sign() / 4
    interior = (inner_x == x) & (inner_y == y)
    zero = torch.zeros_like(step_x)
    return torch.where(interior, step_x, zero), torch.where(interior, step_y, zero)


def _towards_second(maps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Highest cells y, x [P, K] of maps [P, K, H, W], and steps in x and y towards the second highest ones."""
    width = maps.shape[-1]
    flat = maps.flatten(-2)
    first = flat.argmax(-1)
    second = flat.scatter(-1, first.unsqueeze(-1), -1.0).argmax(-1)
    (y, x), (far_y, far_x) = ((torch.div(i, width, rounding_mode="floor"), i % width) for i in (first, second))
    way_x, way_y = (far_x - x).to(maps.dtype), (far_y - y).to(maps.dtype)
    quarter = 0.25 / (way_x.square() + way_y.square()).sqrt()
    return y, x, way_x * quarter, way_y * quarter


def gaussian_taps(sigma: float) -> tuple[float, ...]:
    """A Gaussian filter's weights, as wide as OpenCV and DARK take it: 11 cells for sigma 2, 17 for sigma 3."""
    reach = max(1, round((sigma - 0.8) / 0.3) + 1)
    weights = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-reach, reach + 1)]
    return tuple(weight / sum(weights) for weight in weights)


def filtered(maps: Tensor, taps: Sequence[float]) -> Tensor:
    """Maps [P, K, H, W] filtered along both axes; zero outside."""
    joints, reach = maps.shape[1], len(taps) // 2
    kernel = torch.tensor(taps, dtype=maps.dtype, device=maps.device).expand(joints, 1, 1, len(taps))
    rows = functional.conv2d(maps, kernel, padding=(0, reach), groups=joints)
    return functional.conv2d(rows, kernel.transpose(-1, -2), padding=(reach, 0), groups=joints)


def fused_sigma(sigmas: Sequence[float]) -> float:
    """Sigma of the fusion of Gaussians of one centre with equal weights: 1 / sigma^2 is the mean of theirs."""
    return math.sqrt(len(sigmas) / sum(sigma**-2 for sigma in sigmas))
