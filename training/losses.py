"""Losses of the supervision radii, each per joint, in float32, and masked to the joints that carry a label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from service.skeletons import Skeleton
from training.batches import PoseBatch
from training.hard_samples import hard_samples, stage_oks
from training.networks.base import Unit
from training.supervision import Supervision
from training.targets import Radius, axis_gaussians, disc_maps, gaussian_maps, heatmap_points


def spatial_cross_entropy(raw: Tensor, points: Tensor, present: Tensor, sigma: float) -> Tensor:
    """Cross-entropy between the softmax over each map and the normalised Gaussian at the joint.

    The Gaussian is the outer product of two profiles, so the target map is never built: the cross-entropy is
    ``logsumexp(raw) - rows^T raw columns``.

    Args:
        raw: [P, K, H, W].
        points: [P, K, 2] in heatmap cells; finite.
        present: [P, K]; where 0 the target is the uniform distribution, whose served peak is near 0.
        sigma: in cells.

    Returns:
        [P, K], minus the target's own entropy, so that 0 is perfect.
    """
    raw = raw.float()
    there = present.unsqueeze(-1) > 0
    rows, columns = (
        torch.where(there, profile / profile.sum(-1, keepdim=True).clamp_min(1e-12), 1 / profile.shape[-1])
        for profile in axis_gaussians(points.float(), (raw.shape[-2], raw.shape[-1]), sigma)
    )
    entropy = -(torch.xlogy(rows, rows).sum(-1) + torch.xlogy(columns, columns).sum(-1))
    return _CrossEntropy.apply(raw, rows, columns) - entropy


class _CrossEntropy(torch.autograd.Function):
    """``logsumexp(raw) - rows^T raw columns`` [P, K], with its gradient ``softmax(raw) - rows columns^T`` in one map.

    Autograd builds five maps on the way back, half of the whole loss's time on a CPU.
    """

    @staticmethod
    def forward(context: Any, raw: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        whole = raw.flatten(-2).logsumexp(-1)
        context.save_for_backward(raw, rows, columns, whole)
        return whole - ((rows.unsqueeze(-2) @ raw).squeeze(-2) * columns).sum(-1)

    @staticmethod
    def backward(context: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        raw, rows, columns, whole = context.saved_tensors
        out = (raw - whole[..., None, None]).exp_()
        out.addcmul_(rows.unsqueeze(-1), columns.unsqueeze(-2), value=-1).mul_(grad[..., None, None])
        return out, None, None


def mean_squared_error(raw: Tensor, points: Tensor, present: Tensor, sigma: float) -> Tensor:
    """[P, K]: squared error to the Gaussian, summed over the map in units of the Gaussian's own energy.

    The mean over the map would make a blank answer nearly free (a joint covers half a percent of the map);
    in these units a blank map costs 1 whatever sigma and map size are. The target of an absent joint is blank.
    """
    raw = raw.float()
    target = gaussian_maps(points.float(), (raw.shape[-2], raw.shape[-1]), sigma) * _each_map(present)
    return (raw - target).square().sum((-2, -1)) / (math.pi * sigma**2)


def binary_cross_entropy(raw: Tensor, points: Tensor, present: Tensor, radius: float) -> Tensor:
    """[P, K]: every pixel decides joint or background; summed over the map in units of the disc's area.

    All pixels are background where the joint is absent.
    """
    raw = raw.float()
    target = disc_maps(points.float(), (raw.shape[-2], raw.shape[-1]), radius) * _each_map(present)
    loss = _Softplus.apply(raw) - raw * target
    return loss.sum((-2, -1)) / max(1.0, math.pi * radius**2)


class _Softplus(torch.autograd.Function):
    """``log(1 + exp(x))``, off by 1e-7 at most: log1p has no vector code on CPUs, and took 15 ms of each head's 28."""

    @staticmethod
    def forward(context: Any, raw: Tensor) -> Tensor:
        context.save_for_backward(raw)
        return raw.abs().neg_().exp_().add_(1).log_().add_(raw.clamp_min(0))

    @staticmethod
    def backward(context: Any, grad: Tensor) -> Tensor:
        (raw,) = context.saved_tensors
        return grad * raw.sigmoid()


def _each_map(present: Tensor) -> Tensor:
    return (present > 0).float()[..., None, None]


_LOSSES = {"gaussian": mean_squared_error, "disc": binary_cross_entropy, "softmax": spatial_cross_entropy}


def hardest(each: Tensor, weights: Tensor, top: int) -> Tensor:
    """Online hard keypoint mining (CPN, Chen et al. 2018): weights of all but the hardest joints set to 0.

    Args:
        each: [P, K] loss of each joint.
        weights: [P, K]; joints of weight 0 are never chosen.
        top: joints of each person that stay, the ones of the highest loss (all where fewer have a weight).

    Returns:
        [P, K].
    """
    top = min(top, each.shape[1])
    ranked = each.detach().masked_fill(weights <= 0, -math.inf)
    return torch.zeros_like(weights).scatter(1, ranked.topk(top, 1).indices, 1.0) * weights


def pose_loss(
    maps: Sequence[Tensor],
    units: Sequence[Unit],
    batch: PoseBatch,
    radii: Sequence[Radius],
    supervision: Supervision,
    skeleton: Skeleton,
    stride: int,
) -> tuple[Tensor, dict[str, float]]:
    """Loss of all units and radii, over the joints that carry a label only.

    For each unit and radius it is the weighted mean over the batch's labelled joints (over those that were chosen,
    with hard joints); the units' values are averaged by their weights, so that the gradient's size does not depend on
    how many units a network has. Samples that are too easy for a stage leave its sum but not the mean's denominator:
    the others weigh as without the rule, and a single hard sample does not drive a whole step.

    In a process group the means are over the joints of all processes: the mean of the processes' gradients is that
    of one process with the whole batch. Every process must call it then.

    Args:
        maps: one raw map [P, R, K, H, W] for each unit, of any float type.
        units: their places.
        batch: points in crop pixels, and which of them are known, present, and of whom.
        radii: the R heads' supervision.
        supervision: :meth:`Supervision.check` should have passed with these units.
        skeleton: of the K joints.
        stride: crop pixels for each heatmap cell.

    Returns:
        the scalar to minimise, float32; and for the curves the last unit's ``loss/<radius>``, and
        ``hard_samples/stage<s>``, the share of the people that trained the s-th stage (from 1).
    """
    # The loss is float32 also where the caller is inside autocast, which would run its products in half precision.
    with torch.autocast(maps[0].device.type, enabled=False):
        return _pose_loss(maps, units, batch, radii, supervision, skeleton, stride)


def _pose_loss(
    maps: Sequence[Tensor],
    units: Sequence[Unit],
    batch: PoseBatch,
    radii: Sequence[Radius],
    supervision: Supervision,
    skeleton: Skeleton,
    stride: int,
) -> tuple[Tensor, dict[str, float]]:
    known = (batch.labelled > 0) & (batch.present > 0)
    # Places nobody wrote down may be NaN, which a weight of 0 would not silence.
    points = heatmap_points(torch.where(known.unsqueeze(-1), batch.points, torch.zeros_like(batch.points)), stride)
    joint_weights = torch.tensor(supervision.weights_of_joints(skeleton), device=points.device)
    weights = batch.labelled.float() * joint_weights
    sums: list[Tensor] = []
    counts: list[Tensor] = []
    shares: list[float] = []
    kept: dict[str, Tensor] = {}
    trained, oks = torch.ones_like(weights[:, :1]), None
    for raw, unit in zip(maps, units, strict=True):
        # Channels last, as convolutions leave them, sums over a map take three times as long. And unbind, not indexing:
        # the gradient of a slice is a whole map of zeros, a tenth of a CPU step.
        raw = raw.contiguous().float()
        heads = raw.unbind(1)
        if unit.level == 0:
            threshold = supervision.threshold(unit.stage)
            if threshold is not None and oks is not None:
                hard = hard_samples(oks, threshold)
                trained = hard.float().unsqueeze(-1)
                judged = ~oks.isnan()
                kept[f"hard_samples/stage{unit.stage + 1}"] = (hard & judged).sum() / judged.sum().clamp_min(1)
        top = supervision.hard_joints_of(unit)
        present = batch.present
        if supervision.only_visible(unit):
            if batch.visible is None:
                raise ValueError("supervision.visible_only: this batch does not say which joints are visible")
            present = present * batch.visible
        for head, radius in zip(heads, radii, strict=True):
            each = _LOSSES[radius.kind](head, points, present, radius.sigma * supervision.width_factor(unit))
            chosen = weights if top is None else hardest(each, weights, top)
            sums.append((each * chosen * trained).sum())
            counts.append(chosen.sum())
            shares.append(radius.weight * supervision.unit_weight(unit))
        if supervision.hard_samples and unit.finest and not unit.last_stage:
            oks = stage_oks(raw.detach(), batch, radii, skeleton.sigmas, stride)
    total, count = torch.stack(sums), torch.stack(counts)
    values, count = _of_all_processes(total.detach(), count)
    whole = sum(supervision.unit_weight(unit) for unit in units)
    loss = (total * total.new_tensor(shares) / count.clamp_min(1e-6)).sum() / whole
    names = [f"loss/{radius.name}" for radius in radii]
    return loss, dict(zip([*names, *kept], torch.stack([*values[-len(radii) :], *kept.values()]).tolist(), strict=True))


def _of_all_processes(total: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Means over all processes, and the counts that a process must divide by for the mean gradient to be theirs."""
    if distributed.is_available() and distributed.is_initialized():
        both = torch.stack([total, count])
        distributed.all_reduce(both)
        total, count = both / distributed.get_world_size()
    return total / count.clamp_min(1e-6), count
