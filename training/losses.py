"""Losses of the supervision radii, each per joint, in float32, and masked to the joints that carry a label."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from training.targets import Radius, axis_gaussians, disc_maps, gaussian_maps


def spatial_cross_entropy(raw: Tensor, points: Tensor, sigma: float) -> Tensor:
    """Cross-entropy between the softmax over each map and the normalised Gaussian at the joint.

    The Gaussian is the outer product of two profiles, so the target map is never built: the cross-entropy is
    ``logsumexp(raw) - rows^T raw columns``.

    Args:
        raw: [P, K, H, W].
        points: [P, K, 2] in heatmap cells.
        sigma: in cells.

    Returns:
        [P, K], minus the target's own entropy, so that 0 is perfect.
    """
    raw = raw.float()
    rows, columns = axis_gaussians(points.float(), (raw.shape[-2], raw.shape[-1]), sigma)
    rows = rows / rows.sum(-1, keepdim=True).clamp_min(1e-12)
    columns = columns / columns.sum(-1, keepdim=True).clamp_min(1e-12)
    expected = torch.einsum("pkh,pkhw,pkw->pk", rows, raw, columns)
    entropy = -(torch.xlogy(rows, rows).sum(-1) + torch.xlogy(columns, columns).sum(-1))
    return raw.flatten(-2).logsumexp(-1) - expected - entropy


def mean_squared_error(raw: Tensor, points: Tensor, sigma: float) -> Tensor:
    """[P, K]: squared error to the Gaussian, summed over the map in units of the Gaussian's own energy.

    The mean over the map would make a blank answer nearly free (a joint covers half a percent of the map);
    in these units a blank map costs 1 whatever sigma and map size are.
    """
    raw = raw.float()
    target = gaussian_maps(points.float(), (raw.shape[-2], raw.shape[-1]), sigma)
    return (raw - target).square().sum((-2, -1)) / (math.pi * sigma**2)


def binary_cross_entropy(raw: Tensor, points: Tensor, radius: float) -> Tensor:
    """[P, K]: every pixel decides joint or background; summed over the map in units of the disc's area."""
    raw = raw.float()
    target = disc_maps(points.float(), (raw.shape[-2], raw.shape[-1]), radius)
    loss = functional.binary_cross_entropy_with_logits(raw, target, reduction="none")
    return loss.sum((-2, -1)) / max(1.0, math.pi * radius**2)


_LOSSES = {"gaussian": mean_squared_error, "disc": binary_cross_entropy, "softmax": spatial_cross_entropy}


def pose_loss(
    maps: Sequence[Tensor], points: Tensor, labelled: Tensor, radii: Sequence[Radius]
) -> tuple[Tensor, dict[str, float]]:
    """Loss of all stacks and heads, over the joints that carry a label only.

    Args:
        maps: one raw map [P, R, K, H, W] for each stack (intermediate supervision: all count alike).
        points: [P, K, 2] in heatmap cells; places of unlabelled joints are not looked at.
        labelled: [P, K], 1 where the joint carries a label and lies in the crop, else 0.
        radii: the R heads' supervision.

    Returns:
        the scalar to minimise, and the last stack's loss for each radius, for the curves.
    """
    joints = labelled.sum().clamp_min(1.0)
    safe = torch.where(labelled.unsqueeze(-1) > 0, points, torch.zeros_like(points))
    total = maps[0].new_zeros((), dtype=torch.float32)
    last: dict[str, float] = {}
    for raw in maps:
        # unbind, not indexing: the gradient of a slice is a whole map of zeros, a tenth of a CPU step.
        for head, radius in zip(raw.unbind(1), radii, strict=True):
            each = _LOSSES[radius.kind](head, safe, radius.sigma)
            value = (each * labelled).sum() / joints
            total = total + radius.weight * value
            last[f"loss/{radius.name}"] = float(value.detach())
    return total / len(maps), last
