"""Which places answer for whom: the task-aligned assignment of TOOD (Feng et al. 2021), with regions that count not.

A person is taught to the places that already do best at both tasks, scoring and boxing; each of them is to give the
score that its box deserves. So score and box quality agree after NMS, and no anchor sizes have to be chosen.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torchvision.ops import box_iou

from training.networks.detection_loss import Target, ignored_by
from training.recipe import Strict

# Before anything is learnt all of a person's places may have an IoU of nearly 0: any of them is better than none.
_LEAST = 1e-9


class AssignmentRules(Strict):
    """How places are chosen; the paper's values."""

    places: int = Field(13, ge=1, description="most places that learn one person")
    score_power: float = Field(1.0, ge=0, description="of the score in the alignment, alpha")
    iou_power: float = Field(6.0, gt=0, description="of the box's IoU in the alignment, beta")


class Assignment(NamedTuple):
    """Of one picture's L places: the score each should give (0: background), its person, and whether it counts.

    quality float32 [L] in 0..1, owner int64 [L] (an index into the target's people, only where quality > 0), counted
    bool [L].
    """

    quality: Tensor
    owner: Tensor
    counted: Tensor


def candidates(points: Tensor, strides: Tensor, people: Tensor) -> Tensor:
    """Bool [P, L]: the place lies in the person's box, or is the finest level's cell that holds the box's centre."""
    low, high = people[:, None, :2], people[:, None, 2:]
    inside = ((points > low) & (points < high)).all(-1)
    # Boxes smaller than a cell may hold no place at all.
    apart = (points - (low + high) / 2).abs().amax(-1)
    return inside | ((apart <= strides / 2) & (strides == strides.min()))


def counted_places(points: Tensor, boxes: Tensor, regions: Tensor) -> Tensor:
    """Bool [L]: neither the place nor most of its box [L, 4] lies in an ignore region [I, 4]."""
    if not len(regions):
        return torch.ones(len(points), dtype=torch.bool, device=points.device)
    inside = ((points[:, None] >= regions[:, :2]) & (points[:, None] <= regions[:, 2:])).all(-1).any(1)
    return ~(inside | ignored_by(boxes, regions))


@torch.no_grad()
def assign(
    points: Tensor, strides: Tensor, boxes: Tensor, scores: Tensor, target: Target, rules: AssignmentRules
) -> Assignment:
    """Assign the places of one picture.

    Args:
        points, strides: of the L places.
        boxes: float32 [L, 4] that they predict now.
        scores: float32 [L] that they predict now, 0..1.
        target: people and ignore regions.
        rules: how many and which.
    """
    people = target.people
    counted = counted_places(points, boxes, target.ignored)
    quality, owner = torch.zeros_like(scores), torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
    if not len(people):
        return Assignment(quality, owner, counted)
    iou = box_iou(people, boxes)
    alignment = (scores.pow(rules.score_power) * iou.pow(rules.iou_power) + _LEAST) * candidates(
        points, strides, people
    )
    best = alignment.topk(min(rules.places, len(scores)), dim=1)
    chosen = torch.zeros_like(alignment).scatter(1, best.indices, 1.0).mul(alignment) > 0
    # A place between two people belongs to the one it boxes better.
    owner = torch.where(chosen, iou, -torch.ones_like(iou)).argmax(0)
    chosen &= torch.arange(len(people), device=owner.device)[:, None] == owner
    # The best place of a person is asked for its own IoU, the others for less, as their alignment is less (eq. 4).
    alignment = alignment * chosen
    scale = (iou * chosen).amax(1, keepdim=True) / alignment.amax(1, keepdim=True).clamp(min=_LEAST / 2)
    quality = (alignment * scale).amax(0)
    return Assignment(quality, owner, counted | (quality > 0))
