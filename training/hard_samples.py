"""Stage-wise hard samples: a later stage trains on the people that the stage before it got wrong.

From "Work on COCO 2018 Keypoint Detection Task" (Megvii, 2018), section 3.2.3.2: of three stages the second sees the
samples whose OKS after the first is below 0.8, the third those whose OKS after the second is below 0.6.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from training.batches import PoseBatch
from training.decoding import decode, fuse
from training.targets import Radius, activate


def crop_oks(found: Tensor, batch: PoseBatch, sigmas: Sequence[float]) -> Tensor:
    """OKS of one answer for each crop with its label, over the joints that are labelled and present.

    The same measure as ``service.oks.pairwise_oks``, for P pairs and where the maps are.

    Args:
        found: [P, K, 2] joints in crop pixels.
        batch: their labels; distances and areas are both in crop pixels, so the crop's scale cancels.
        sigmas: the skeleton's K.

    Returns:
        float32 [P]; NaN where no joint is labelled and present: such a crop has no OKS.
    """
    known = (batch.labelled > 0) & (batch.present > 0)
    points = torch.where(known.unsqueeze(-1), batch.points, torch.zeros_like(batch.points)).float()
    squared = (found.float() - points).square().sum(-1)
    variances = (2 * torch.tensor(sigmas, dtype=torch.float32, device=squared.device)).square()
    spread = batch.areas.float().unsqueeze(-1).clamp_min(torch.finfo(torch.float32).tiny)
    similarity = torch.exp(-squared / (2 * spread * variances)) * known
    return similarity.sum(-1) / known.sum(-1)


@torch.no_grad()
def stage_oks(raw: Tensor, batch: PoseBatch, radii: Sequence[Radius], sigmas: Sequence[float], stride: int) -> Tensor:
    """OKS that a stage's raw maps [P, R, K, H, W] would be served with: fused over the radii alike and decoded. [P]."""
    heatmaps = [activate(head, radius) for head, radius in zip(raw.unbind(1), radii, strict=True)]
    fused = fuse(heatmaps, raw.new_ones((len(raw), len(radii)), dtype=torch.float32))
    return crop_oks(decode(fused, stride)[..., :2], batch, sigmas)


def hard_samples(oks: Tensor, threshold: float) -> Tensor:
    """Which samples train the next stage, bool [P]: OKS below the threshold, and those that have no OKS.

    A crop without a person (a false box) stays: a stage that never sees one does not learn to stay silent.
    """
    return ~(oks >= threshold)
