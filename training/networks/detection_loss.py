"""What the person detector is taught: which anchors and proposals are people, and where the person is.

Boxes of people are positives. Ignore regions (crowds, pictures in which not everybody is labelled) make whatever
lies mostly inside them count neither way, as pycocotools does when it measures.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torchvision.ops import box_iou, sigmoid_focal_loss

from training.networks.faster_rcnn import HEAD_CODE, NO_PROPOSAL, RPN_CODE, FasterRcnn, RpnOutput, encode
from training.recipe import Strict

PERSON = 1


class Target:
    """Truth of one picture.

    Attributes:
        boxes: float32 [G, 4] x1 y1 x2 y2 in network pixels.
        ignored: float32 [I, 4], ignore regions.
        labels: int64 [G], COCO's category of each box, 1 for people; all people when not given.
    """

    def __init__(self, boxes: Tensor, ignored: Tensor, labels: Tensor | None = None) -> None:
        self.boxes, self.ignored = boxes, ignored
        self.labels = torch.ones(len(boxes), dtype=torch.int64, device=boxes.device) if labels is None else labels

    @property
    def people(self) -> Tensor:
        """Boxes of people [P, 4]."""
        return self.boxes[self.labels == PERSON]

    def to(self, device: torch.device) -> Target:
        """The same on another device."""
        return Target(self.boxes.to(device), self.ignored.to(device), self.labels.to(device))


class DetectorLoss(Strict):
    """Thresholds and weights."""

    anchor_positive: float = Field(0.55, gt=0, lt=1, description="least IoU of a positive anchor")
    anchor_negative: float = Field(0.4, gt=0, lt=1, description="IoU under which an anchor is background")
    proposals: int = Field(200, ge=1, description="proposals of each picture from which the head's samples are drawn")
    head_samples: int = Field(48, ge=2, description="proposals of each picture that the head learns from")
    head_positive_share: float = Field(0.35, gt=0, le=1)
    head_iou: float = Field(0.5, gt=0, lt=1, description="least IoU of a positive proposal")
    rpn_weight: float = Field(1.0, gt=0)
    box_weight: float = Field(1.0, gt=0)


def ignored_by(boxes: Tensor, regions: Tensor) -> Tensor:
    """Bool [A]: at least half of the box lies inside one ignore region."""
    if not len(regions):
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    low = torch.maximum(boxes[:, None, :2], regions[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    inside = (high - low).clamp(min=0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1).clamp(min=1e-6)
    return (inside / area[:, None]).amax(1) >= 0.5


def match_anchors(anchors: Tensor, target: Target, loss: DetectorLoss) -> tuple[Tensor, Tensor]:
    """Labels int64 [A] (1 person, 0 background, -1 ignored) and the index [A] of each anchor's person."""
    labels = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
    owner = torch.zeros_like(labels)
    if len(target.people):
        iou = box_iou(anchors, target.people)
        best, owner = iou.max(1)
        labels[best >= loss.anchor_negative] = -1
        labels[best >= loss.anchor_positive] = 1
        # Everybody keeps at least the anchors that fit best, however badly (Ren et al. 2015, section 3.1.2).
        top = iou.amax(0)
        anchor, person = torch.where((iou >= top - 1e-4) & (top > 0.1))
        labels[anchor] = 1
        owner[anchor] = person
    labels[(labels == 0) & ignored_by(anchors, target.ignored)] = -1
    return labels, owner


def rpn_loss(rpn: RpnOutput, targets: list[Target], loss: DetectorLoss) -> tuple[Tensor, Tensor]:
    """Focal classification loss and smooth L1 box loss, both per positive anchor of the batch."""
    matched = [match_anchors(rpn.anchors, target, loss) for target in targets]
    labels = torch.stack([m[0] for m in matched])
    positives = labels == 1
    count = positives.sum().clamp(min=1)
    # All anchors with the focal loss, not a random 256: no sampling noise, and hard background is seen every step.
    focal = sigmoid_focal_loss(rpn.logits, positives.float(), alpha=0.25, gamma=2.0)
    classify = (focal * (labels >= 0)).sum() / count
    wanted = [
        encode(target.people[owner[label == 1]], rpn.anchors[label == 1], RPN_CODE)
        for target, (label, owner) in zip(targets, matched, strict=True)
    ]
    box = F.smooth_l1_loss(rpn.deltas[positives], torch.cat(wanted), beta=1 / 9, reduction="sum") / count
    return classify, box


def sample_proposals(boxes: Tensor, target: Target, loss: DetectorLoss) -> tuple[Tensor, Tensor, Tensor]:
    """The head's training samples of one picture: boxes [B, 4], labels int64 [B] (-1 ignored), regression targets.

    Always ``head_samples`` rows; the people themselves are among the candidates, so that the head has positives from
    the first step.
    """
    candidates = torch.cat([target.people, boxes])
    candidates = candidates[(candidates[:, 2:] - candidates[:, :2]).amin(1) >= 1]
    labels = torch.zeros(len(candidates), dtype=torch.int64, device=boxes.device)
    owner = torch.zeros_like(labels)
    if len(target.people):
        best, owner = box_iou(candidates, target.people).max(1)
        labels[best >= loss.head_iou] = 1
    labels[(labels == 0) & ignored_by(candidates, target.ignored)] = -1
    positive = _draw(torch.where(labels == 1)[0], int(loss.head_samples * loss.head_positive_share))
    negative = _draw(torch.where(labels == 0)[0], loss.head_samples - len(positive))
    rows = torch.cat([positive, negative])
    chosen, labels = candidates[rows], labels[rows]
    wanted = torch.zeros_like(chosen)
    wanted[: len(positive)] = encode(target.people[owner[positive]], chosen[: len(positive)], HEAD_CODE)
    missing = loss.head_samples - len(rows)
    if missing:
        filler = chosen.new_tensor([0.0, 0.0, 16.0, 16.0]).expand(missing, 4)
        chosen, wanted = torch.cat([chosen, filler]), torch.cat([wanted, torch.zeros_like(filler)])
        labels = torch.cat([labels, labels.new_full((missing,), -1)])
    return chosen, labels, wanted


def _draw(rows: Tensor, count: int) -> Tensor:
    return rows[torch.randperm(len(rows), device=rows.device)[:count]]


def detector_loss(
    network: FasterRcnn, images: Tensor, targets: list[Target], loss: DetectorLoss
) -> tuple[Tensor, dict[str, Tensor]]:
    """Total loss of one batch and its parts. Images uint8 [N, S, S, 3]."""
    features = network.features(images)
    rpn = network.rpn(features)
    with torch.no_grad():
        proposals, objectness = network.propose(rpn, images.shape[1], loss.proposals)
        samples = [
            sample_proposals(boxes[logits > NO_PROPOSAL], target, loss)
            for boxes, logits, target in zip(proposals, objectness, targets, strict=True)
        ]
    labels = torch.stack([s[1] for s in samples])
    wanted = torch.stack([s[2] for s in samples])
    logits, deltas = network.refine(features, torch.stack([s[0] for s in samples]))
    counted, positive = labels >= 0, labels == 1
    parts = {}
    parts["rpn_class"], parts["rpn_box"] = rpn_loss(rpn, targets, loss)
    parts["head_class"] = F.binary_cross_entropy_with_logits(logits[counted], positive[counted].float())
    parts["head_box"] = F.smooth_l1_loss(
        deltas[positive], wanted[positive], beta=1.0, reduction="sum"
    ) / counted.sum().clamp(min=1)
    total = (
        loss.rpn_weight * (parts["rpn_class"] + loss.box_weight * parts["rpn_box"])
        + parts["head_class"]
        + loss.box_weight * parts["head_box"]
    )
    return total, {name: value.detach() for name, value in parts.items()}
