"""torchvision's Faster R-CNNs as person detectors: its networks, weights and training rules on tensors of fixed size.

torchvision's own forward goes through a batch picture by picture and answers lists of any length, which exports for a
batch of one only. Here its modules (backbone, proposal head, box head) run on the whole batch, M boxes come out for
each picture, and for the same weights they are torchvision's (tests/training/test_torchvision_detectors.py compares
with its forward, in evaluation and in training). What it lacks is added: ignore regions count neither way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor
from torchvision.models import get_model
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import roi_align

from training.networks.base import normalise
from training.networks.detection_loss import Target, ignored_by
from training.networks.detector_base import Detector, DetectorConfig
from training.networks.detector_weights import freeze_norms, initialise_backbone, initialise_detector, train_last_layers
from training.networks.faster_rcnn import HEAD_CODE, NO_PROPOSAL, RPN_CODE, decode, suppress
from training.recipe import DataPath

# COCO numbers its 80 categories 1 to 90 with gaps; torchvision's heads have a row for each number, 0 is background.
COCO_ROWS = 91
PERSON = 1
# Proposals are pooled from the level where they would be 224 pixels wide at stride 16 (Lin et al. 2017, eq. 1).
_CANONICAL_SIDE, _CANONICAL_LEVEL = 224.0, 4
_POOLED = 7
_SMALLEST_PROPOSAL = 1e-3


class TorchvisionConfig(DetectorConfig):
    """Hyper-parameters that all of them share; the training ones have torchvision's defaults."""

    classes: Literal["person", "coco80"] = Field(
        "person", description="coco80: learn all categories of a COCO file, serve people (Megvii's way)"
    )
    init: Literal["coco"] | DataPath | None = Field(
        None, description="weights to start from: coco downloads torchvision's, a path names a downloaded .pth"
    )
    backbone_init: Literal["imagenet"] | DataPath | None = Field(None, description="the same for the backbone alone")
    trainable_layers: int | None = Field(
        None,
        ge=0,
        le=6,
        description="backbone stages that learn, from the last; default 3 with given weights, else all",
    )
    input_size: int = Field(640, ge=128, le=1024, multiple_of=64, description="side S of the letterboxed input")
    proposals_before_nms: int = Field(500, ge=1, description="of each pyramid level, when detecting")
    refined: int = Field(300, ge=1, description="proposals of each picture that the box head sees when detecting")
    proposals: int = Field(100, ge=1, description="M: boxes answered for each picture")
    proposal_nms: float = Field(0.7, gt=0, le=1)
    proposal_score: float = Field(0.0, ge=0, lt=1, description="objectness under which proposals go")
    training_proposals: int = Field(2000, ge=1, description="of each level before, of each picture after NMS")
    anchor_positive: float = Field(0.7, gt=0, lt=1, description="least IoU of a positive anchor")
    anchor_negative: float = Field(0.3, gt=0, lt=1, description="IoU under which an anchor is background")
    anchor_samples: int = Field(256, ge=2, description="anchors of each picture that the proposal head learns from")
    head_samples: int = Field(512, ge=2, description="proposals of each picture that the box head learns from")
    head_positive_share: float = Field(0.25, gt=0, le=1)
    head_iou: float = Field(0.5, gt=0, lt=1, description="least IoU of a positive proposal")

    @model_validator(mode="after")
    def _check(self) -> TorchvisionConfig:
        if self.refined < self.proposals:
            raise ValueError(f"refined ({self.refined}) must be at least proposals ({self.proposals})")
        if self.anchor_negative > self.anchor_positive:
            raise ValueError(f"anchor_negative ({self.anchor_negative}) is above anchor_positive")
        if self.init and self.backbone_init:
            raise ValueError("init brings a backbone: leave backbone_init out")
        return self

    @property
    def rows(self) -> int:
        """Classes of the box head, background included."""
        return COCO_ROWS if self.every_category else 2

    @property
    def every_category(self) -> bool:
        """Whether it learns more than people."""
        return self.classes == "coco80"

    @property
    def frozen_norms(self) -> bool:
        """Whether batch-norm keeps the statistics of the given weights, as torchvision does when it fine-tunes."""
        return self.init is not None or self.backbone_init is not None

    @property
    def description(self) -> str:
        """For the model card."""
        learned = "trained on COCO's 80 categories, people served" if self.every_category else "people only"
        return f"Faster R-CNN (Ren et al. 2015), torchvision's {self.name}, {learned}"

    def build(self) -> TorchvisionDetector:
        """The network with random weights."""
        return TorchvisionDetector(self)

    def initialise(self, network: Detector) -> None:
        """Load ``init`` or ``backbone_init``. Raises RecipeError."""
        assert isinstance(network, TorchvisionDetector)
        if self.init is not None:
            initialise_detector(network.model, self.name, self.init)
        if self.backbone_init is not None:
            initialise_backbone(network.model, self.name, self.backbone_init)


class ResNet50Config(TorchvisionConfig):
    """ResNet-50 and feature pyramid, 41.3 M parameters; box AP 37.0 on COCO val2017 with torchvision's weights."""

    name: Literal["fasterrcnn_resnet50_fpn"] = "fasterrcnn_resnet50_fpn"


class ResNet50V2Config(TorchvisionConfig):
    """The same with a deeper proposal head, a convolutional box head and batch-norm throughout; box AP 46.7."""

    name: Literal["fasterrcnn_resnet50_fpn_v2"] = "fasterrcnn_resnet50_fpn_v2"

    @property
    def frozen_norms(self) -> bool:
        """Never: torchvision trains the batch-norm of this one."""
        return False


class MobileNetConfig(TorchvisionConfig):
    """MobileNetV3-Large on strides 32 and 64, 19.0 M parameters; box AP 32.8."""

    name: Literal["fasterrcnn_mobilenet_v3_large_fpn"] = "fasterrcnn_mobilenet_v3_large_fpn"


class SmallMobileNetConfig(TorchvisionConfig):
    """The same network with weights for small pictures and few proposals; box AP 22.8."""

    name: Literal["fasterrcnn_mobilenet_v3_large_320_fpn"] = "fasterrcnn_mobilenet_v3_large_320_fpn"
    input_size: int = Field(384, ge=128, le=1024, multiple_of=64)
    proposals_before_nms: int = Field(150, ge=1)
    refined: int = Field(150, ge=1)
    proposal_score: float = Field(0.05, ge=0, lt=1)


class Scored(NamedTuple):
    """The proposal head's answer, one entry for each level: logits [N, A], deltas [N, A, 4], anchors [A, 4]."""

    logits: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]


class TorchvisionDetector(Detector):
    """One of torchvision's Faster R-CNNs (``model``), run as the module's docstring says."""

    network: TorchvisionConfig

    def __init__(self, network: TorchvisionConfig) -> None:
        super().__init__()
        self.network = network
        model = get_model(
            network.name,
            weights=None,
            weights_backbone=None,
            num_classes=network.rows,
            rpn_fg_iou_thresh=network.anchor_positive,
            rpn_bg_iou_thresh=network.anchor_negative,
            rpn_batch_size_per_image=network.anchor_samples,
            box_fg_iou_thresh=network.head_iou,
            box_bg_iou_thresh=network.head_iou,
            box_batch_size_per_image=network.head_samples,
            box_positive_fraction=network.head_positive_share,
        )
        assert isinstance(model, FasterRCNN)
        self.model = model
        if network.frozen_norms:
            # torchvision's first ResNet-50 weights were trained without the variances' epsilon.
            exact = network.init is not None and isinstance(network, ResNet50Config)
            freeze_norms(model, eps=0.0 if exact else None)
        given = network.init is not None or network.backbone_init is not None
        layers = network.trainable_layers if network.trainable_layers is not None else 3 if given else None
        if layers is not None:
            train_last_layers(model, layers)

    def detect(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Detector.detect`."""
        limit = images.shape[1]
        levels = self.features(images)
        proposals, objectness = self.propose(
            self.score(levels, limit), limit, self.network.proposals_before_nms, self.network.refined
        )
        count = proposals.shape[1]
        picture = torch.arange(images.shape[0], device=images.device).repeat_interleave(count).to(proposals.dtype)
        logits, deltas = self.refine(levels, torch.cat([picture[:, None], proposals.reshape(-1, 4)], 1), limit)
        sure = torch.softmax(logits, -1)[:, PERSON].view(-1, count)
        sure = torch.where(objectness > NO_PROPOSAL, sure, torch.zeros_like(sure))
        moves = deltas[:, 4 * PERSON : 4 * PERSON + 4].reshape(-1, count, 4)
        boxes = decode(moves, proposals, HEAD_CODE, limit)
        best = sure.topk(self.network.proposals, dim=1)
        return boxes.gather(1, best.indices[..., None].expand(-1, -1, 4)), best.values

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Letterboxed RGB uint8 [N, S, S, 3] to the pyramid's levels by name."""
        levels: dict[str, Tensor] = self.model.backbone(normalise(images))
        return levels

    def score(self, levels: dict[str, Tensor], limit: int) -> Scored:
        """Logits and box deltas of all anchors, float32."""
        logits, deltas = self.model.rpn.head(list(levels.values()))
        flat_logits, flat_deltas, anchors = [], [], []
        for index, (scores, moves) in enumerate(zip(logits, deltas, strict=True)):
            n, a, h, w = scores.shape
            flat_logits.append(scores.float().permute(0, 2, 3, 1).reshape(n, -1))
            flat_deltas.append(moves.float().view(n, a, 4, h, w).permute(0, 3, 4, 1, 2).reshape(n, -1, 4))
            anchors.append(self.anchors(index, h, limit, scores.device))
        return Scored(flat_logits, flat_deltas, anchors)

    def anchors(self, level: int, side: int, limit: int, device: torch.device) -> Tensor:
        """Anchors of one level [side * side * A, 4], position outer: torchvision's, without its list of pictures."""
        cell = self.model.rpn.anchor_generator.cell_anchors[level].to(device)
        steps = torch.arange(side, device=device, dtype=cell.dtype) * (limit // side)
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        return (torch.stack([x, y, x, y], -1).view(-1, 1, 4) + cell).reshape(-1, 4)

    def propose(self, scored: Scored, limit: int, before: int, after: int) -> tuple[Tensor, Tensor]:
        """The best boxes [N, P, 4] of each picture, NMS within each level, and their logits [N, P].

        The logit is ``NO_PROPOSAL`` for padding.

        Raises:
            ValueError: the picture is too small for that many.
        """
        boxes, logits = [], []
        least = self.network.proposal_score
        least_logit = math.log(least / (1 - least)) if least else -math.inf
        for level, deltas, anchors in zip(*scored, strict=True):
            best = level.topk(min(before, level.shape[1]), dim=1)
            moves = deltas.gather(1, best.indices[..., None].expand(-1, -1, 4))
            found = decode(moves, anchors[best.indices], RPN_CODE, limit)
            kept = suppress(found, best.values, self.network.proposal_nms, limit, apart=self.training)
            kept = kept & ((found[..., 2:] - found[..., :2]).amin(-1) >= _SMALLEST_PROPOSAL)
            kept = kept & (best.values >= least_logit)
            boxes.append(found)
            logits.append(torch.where(kept, best.values, torch.full_like(best.values, NO_PROPOSAL)))
        all_boxes, all_logits = torch.cat(boxes, 1), torch.cat(logits, 1)
        if all_logits.shape[1] < after and not self.training:
            raise ValueError(f"{after} proposals asked for, but a picture of side {limit} has {all_logits.shape[1]}")
        order = all_logits.topk(min(after, all_logits.shape[1]), dim=1)
        return all_boxes.gather(1, order.indices[..., None].expand(-1, -1, 4)), order.values

    def refine(self, levels: dict[str, Tensor], rois: Tensor, limit: int) -> tuple[Tensor, Tensor]:
        """Box head on boxes [B, 5] (picture's row, x1 y1 x2 y2): logits [B, C], deltas [B, 4 C], float32."""
        heads = self.model.roi_heads
        logits, deltas = heads.box_predictor(heads.box_head(self.pool(levels, rois, limit)))
        return logits.float(), deltas.float()

    def pool(self, levels: dict[str, Tensor], rois: Tensor, limit: int) -> Tensor:
        """RoIAlign [B, channels, 7, 7], each box from the level that fits its size."""
        names = self.model.roi_heads.box_roi_pool.featmap_names
        maps = [level.float() for name, level in levels.items() if name in names]
        first, last = (int(math.log2(limit // m.shape[-1])) for m in (maps[0], maps[-1]))
        area = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).clamp(min=1e-6)
        level = torch.floor(_CANONICAL_LEVEL + torch.log2(area.sqrt() / _CANONICAL_SIDE) + 1e-6)
        level = level.clamp(first, last) - first
        pooled = rois.new_zeros(rois.shape[0], maps[0].shape[1], _POOLED, _POOLED)
        for index in range(last - first + 1):
            rows = torch.where(level == index)[0]
            scale = maps[index].shape[-1] / limit
            part = roi_align(maps[index], rois[rows], _POOLED, scale, sampling_ratio=2, aligned=False)
            pooled = pooled.index_put((rows,), part)
        return pooled

    def losses(self, images: Tensor, targets: Sequence[Target]) -> tuple[Tensor, dict[str, Tensor]]:
        """torchvision's four losses and their sum; nothing that lies in an ignore region counts as background.

        Args:
            images: RGB uint8 [N, S, S, 3].
            targets: one for each picture; with ``classes: person`` only people are looked at.
        """
        if not self.network.every_category:
            targets = [Target(target.people, target.ignored) for target in targets]
        limit = images.shape[1]
        levels = self.features(images)
        scored = self.score(levels, limit)
        parts = dict(zip(("rpn_class", "rpn_box"), self._rpn_losses(scored, targets, limit), strict=True))
        with torch.no_grad():
            most = self.network.training_proposals
            boxes, logits = self.propose(Scored(*([v.detach() for v in part] for part in scored)), limit, most, most)
            found = [b[sure > NO_PROPOSAL] for b, sure in zip(boxes, logits, strict=True)]
            rois, labels, wanted = self._head_samples(found, targets)
        if len(labels):
            classes, deltas = self.refine(levels, rois, limit)
            parts["head_class"], parts["head_box"] = fastrcnn_loss(classes, deltas, [labels], [wanted])
        total = torch.stack(list(parts.values())).sum()
        return total, {name: value.detach() for name, value in parts.items()}

    def _rpn_losses(self, scored: Scored, targets: Sequence[Target], limit: int) -> tuple[Tensor, Tensor]:
        rpn = self.model.rpn
        anchors = torch.cat(scored.anchors)
        as_dicts = [{"boxes": target.boxes} for target in targets]
        labels, matched = rpn.assign_targets_to_anchors([anchors] * len(targets), as_dicts)
        # What an anchor sees of the picture decides: the largest reach far over its rim.
        seen = anchors.clamp(0, limit)
        for label, target in zip(labels, targets, strict=True):
            label[(label == 0) & ignored_by(seen, target.ignored)] = -1
        logits, deltas = torch.cat(scored.logits, 1).reshape(-1, 1), torch.cat(scored.deltas, 1).reshape(-1, 4)
        if not any(bool((label >= 0).any()) for label in labels):
            return logits.sum() * 0, deltas.sum() * 0
        wanted = rpn.box_coder.encode(matched, [anchors] * len(targets))
        classify, box = rpn.compute_loss(logits, deltas, labels, list(wanted))
        return classify, box

    def _head_samples(self, proposals: list[Tensor], targets: Sequence[Target]) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes [B, 5], labels int64 [B] and regression targets [B, 4] that the box head learns from."""
        heads = self.model.roi_heads
        truth = [target.boxes for target in targets]
        proposals = heads.add_gt_proposals(proposals, truth)
        owners, labels = heads.assign_targets_to_proposals(proposals, truth, [target.labels for target in targets])
        for boxes, label, target in zip(proposals, labels, targets, strict=True):
            label[(label == 0) & ignored_by(boxes, target.ignored)] = -1
        rois, chosen, matched = [], [], []
        for row, rows in enumerate(heads.subsample(labels)):
            boxes = proposals[row][rows]
            rois.append(F.pad(boxes, (1, 0), value=float(row)))
            chosen.append(labels[row][rows])
            known = truth[row] if len(truth[row]) else boxes.new_zeros(1, 4)
            matched.append(known[owners[row][rows]])
        all_rois = torch.cat(rois)
        wanted = heads.box_coder.encode_single(torch.cat(matched), all_rois[:, 1:])
        return all_rois, torch.cat(chosen), wanted
