"""What a dense detector is taught, once its places are assigned (GFL, Li et al. 2020; GIoU, Rezatofighi 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from training.networks.dense_assignment import AssignmentRules, assign
from training.networks.dense_boxes import DenseOutput, boxes_of, sides_of
from training.networks.detection_loss import Target
from training.recipe import Strict


class DenseLoss(Strict):
    """Weights of the parts; those of GFL and TOOD."""

    score_weight: float = Field(1.0, gt=0)
    box_weight: float = Field(2.0, gt=0)
    side_weight: float = Field(0.25, ge=0, description="of the distribution focal loss")
    focus: float = Field(2.0, ge=0, description="power of the difference in the quality focal loss")


def quality_focal(logits: Tensor, quality: Tensor, focus: float) -> Tensor:
    """Quality focal loss of each place (GFL, eq. 2): cross-entropy with a soft label, weighed by how wrong it is."""
    wrong = (quality - torch.sigmoid(logits)).abs().pow(focus)
    return F.binary_cross_entropy_with_logits(logits, quality, reduction="none") * wrong


def distribution_focal(sides: Tensor, distances: Tensor) -> Tensor:
    """Distribution focal loss (GFL, eq. 6), the mean over the four sides.

    Args:
        sides: raw [P, 4 * B].
        distances: wanted [P, 4] in strides; beyond the last bin that bin is wanted.

    Returns:
        [P].
    """
    raw = sides.unflatten(-1, (4, -1))
    wanted = distances.clamp(0, raw.shape[-1] - 1 - 1e-3)
    below = wanted.long()
    upper = wanted - below
    chance = raw.log_softmax(-1)
    at_below = chance.gather(-1, below[..., None])[..., 0]
    at_above = chance.gather(-1, below[..., None] + 1)[..., 0]
    return -((1 - upper) * at_below + upper * at_above).mean(-1)


def dense_loss(
    output: DenseOutput, targets: list[Target], rules: AssignmentRules, loss: DenseLoss
) -> tuple[Tensor, dict[str, Tensor]]:
    """Total loss of one batch and its parts, each per unit of assigned quality in the batch."""
    boxes = boxes_of(output.sides, output.points, output.strides)
    scores = torch.sigmoid(output.logits).detach()
    assigned = [
        assign(output.points, output.strides, found.detach(), score, target, rules)
        for found, score, target in zip(boxes, scores, targets, strict=True)
    ]
    quality = torch.stack([a.quality for a in assigned])
    counted = torch.stack([a.counted for a in assigned])
    # Batches of few people must not shout.
    total_quality = quality.sum().clamp(min=1)
    parts = {"score": (quality_focal(output.logits, quality, loss.focus) * counted).sum() / total_quality}
    picture, place = torch.where(quality > 0)
    wanted = torch.cat([target.people[a.owner[a.quality > 0]] for target, a in zip(targets, assigned, strict=True)])
    weight = quality[picture, place]
    parts["box"] = (generalized_box_iou_loss(boxes[picture, place], wanted) * weight).sum() / total_quality
    distances = sides_of(wanted, output.points[place], output.strides[place])
    parts["sides"] = (distribution_focal(output.sides[picture, place], distances) * weight).sum() / total_quality
    total = loss.score_weight * parts["score"] + loss.box_weight * parts["box"] + loss.side_weight * parts["sides"]
    return total, {name: value.detach() for name, value in parts.items()}
