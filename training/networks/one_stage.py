"""One-stage, anchor-free person detector: every place of a feature map says whether a person is there, and how large.

After FCOS (Tian et al. 2019: distances to the four sides), GFL (Li et al. 2020: one score for "person" and "how well
boxed", distances as distributions) and PANet (Liu et al. 2018: pyramid down and up again). Layers are plain 3x3
convolutions, which train several times faster on CPUs than depthwise ones for the same work. Which place answers for
whom is decided in :mod:`training.networks.dense_assignment`, what it is taught in :mod:`training.networks.dense_loss`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from training.initialisation import InitialisationError, load_backbones, load_matching
from training.networks.dense_assignment import AssignmentRules
from training.networks.dense_boxes import DenseOutput, boxes_of, places
from training.networks.dense_loss import DenseLoss, dense_loss
from training.networks.detection_loss import Target
from training.networks.detector_base import Detector, DetectorConfig
from training.networks.resnet import LightResNet, ResNet, ResNetName, describe
from training.recipe import DataPath, RecipeError

STRIDES = (8, 16, 32)
# Pixels are centred and scaled inside the network, as for the pose networks whose backbones it may start from.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class OneStageConfig(DetectorConfig):
    """Hyper-parameters of the network."""

    name: Literal["one_stage"] = "one_stage"
    backbone: ResNetName = "light"
    width: int = Field(32, ge=8, description="channels of the light backbone's first stage")
    blocks: tuple[int, int, int, int] = Field((2, 2, 2, 2), description="of the light backbone's stages")
    channels: int = Field(48, ge=8, description="of the pyramid and the head")
    shared: int = Field(1, ge=0, description="3x3 convolutions of the head that scores and boxes share")
    apart: int = Field(1, ge=0, description="3x3 convolutions that each of the two has to itself")
    bins: int = Field(16, ge=2, description="a distance is a distribution over 0 .. bins - 1 strides")
    input_size: int = Field(384, ge=64, multiple_of=32, description="side S of the letterboxed input")
    proposals: int = Field(300, ge=1, description="M: boxes answered for each picture, before NMS")
    assignment: AssignmentRules = AssignmentRules()
    loss: DenseLoss = DenseLoss()
    init: DataPath | None = Field(
        None, description="start from a checkpoint with tensors of the same names: a pose network on this backbone"
    )
    backbone_init: DataPath | None = Field(None, description="start the backbone from torchvision's ImageNet weights")

    @model_validator(mode="after")
    def _check(self) -> OneStageConfig:
        if self.init and self.backbone_init:
            raise ValueError("init brings a backbone: leave backbone_init out")
        if self.backbone_init and self.backbone == "light":
            raise ValueError("backbone_init: there are no ImageNet weights for the light backbone")
        cells = sum((self.input_size // stride) ** 2 for stride in STRIDES)
        if self.proposals > cells:
            raise ValueError(f"proposals: {self.proposals}, but {self.input_size} pixels have {cells} places")
        return self

    @property
    def description(self) -> str:
        """For the model card."""
        return (
            "One-stage anchor-free detector (FCOS, Tian et al. 2019; GFL, Li et al. 2020; task-aligned assignment, "
            f"Feng et al. 2021) on a {describe(self.backbone, self.width)}"
        )

    def build(self) -> OneStage:
        """The network with random weights."""
        return OneStage(self)

    def initialise(self, network: Detector) -> None:
        """Load ``init`` or ``backbone_init`` and say how much fitted. Raises RecipeError."""
        assert isinstance(network, OneStage)
        try:
            if self.init:
                fitted, total = load_matching(network, self.init)
                print(f"network.init {self.init}: {fitted} of {total} tensors fit")
            if self.backbone_init:
                fitted, total = load_backbones(network, self.backbone_init)
                print(f"network.backbone_init {self.backbone_init}: {fitted} of the backbone's {total} tensors")
        except InitialisationError as error:
            raise RecipeError(f"network.{'init' if self.init else 'backbone_init'}: {error}") from error


def _layer(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class _Pyramid(nn.Module):
    """Features of three strides to ``channels`` each: what is coarse goes down to the fine, and up again."""

    def __init__(self, inputs: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(_layer(count, channels, 1) for count in inputs)
        self.down = nn.ModuleList(_layer(channels, channels, 3) for _ in inputs[:-1])
        self.coarser = nn.ModuleList(_layer(channels, channels, 3, 2) for _ in inputs[:-1])
        self.up = nn.ModuleList(_layer(channels, channels, 3) for _ in inputs[:-1])

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        levels = [layer(feature) for layer, feature in zip(self.lateral, features, strict=True)]
        for index in reversed(range(len(self.down))):
            wider = F.interpolate(levels[index + 1], scale_factor=2.0, mode="nearest")
            levels[index] = self.down[index](levels[index] + wider)
        for index, (coarser, up) in enumerate(zip(self.coarser, self.up, strict=True)):
            levels[index + 1] = up(levels[index + 1] + coarser(levels[index]))
        return levels


class _SharedLayer(nn.Module):
    """One 3x3 convolution for all levels, so that a person of any size teaches it; each level's own statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in STRIDES)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        return [F.relu(norm(self.conv(level)), inplace=True) for level, norm in zip(levels, self.norms, strict=True)]


class OneStage(Detector):
    """The person detector."""

    network: OneStageConfig
    mean: Tensor
    std: Tensor

    def __init__(self, network: OneStageConfig) -> None:
        super().__init__()
        self.network = network
        channels = network.channels
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1), persistent=False)
        # Named as the pose networks name theirs, so that their weights fit (``init``).
        self.backbone: LightResNet | ResNet
        if network.backbone == "light":
            self.backbone = LightResNet(network.width, network.blocks)
        else:
            self.backbone = ResNet(network.backbone)
        self.pyramid = _Pyramid(self.backbone.channels[-len(STRIDES) :], channels)
        self.head_shared = nn.Sequential(*[_SharedLayer(channels) for _ in range(network.shared)])
        self.head_scores = nn.Sequential(*[_SharedLayer(channels) for _ in range(network.apart)])
        self.head_sides = nn.Sequential(*[_SharedLayer(channels) for _ in range(network.apart)])
        self.score_output = nn.Conv2d(channels, 1, 1)
        self.side_output = nn.Conv2d(channels, 4 * network.bins, 1)
        for layer in (self.score_output, self.side_output):
            nn.init.normal_(layer.weight, std=0.01)
        assert self.score_output.bias is not None
        assert self.side_output.bias is not None
        # Nearly all places are background: starting at probability 0.01 keeps the first steps calm (RetinaNet 2017).
        nn.init.constant_(self.score_output.bias, -math.log(99))
        with torch.no_grad():
            # Boxes start about six strides wide, near people's median, not at the middle of all bins.
            self.side_output.bias.copy_((-0.3 * torch.arange(network.bins)).repeat(4))

    @property
    def backbones(self) -> list[nn.Module]:
        """What ImageNet weights may be loaded into."""
        return [self.backbone]

    def features(self, images: Tensor) -> list[Tensor]:
        """Letterboxed RGB uint8 [N, S, S, 3] -> pyramid levels of strides 8, 16, 32, each [N, C, S/s, S/s]."""
        x = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        levels: list[Tensor] = self.pyramid(self.backbone(x)[-len(STRIDES) :])
        return levels

    def outputs(self, levels: list[Tensor]) -> DenseOutput:
        """Raw scores and sides of all places, float32: levels from fine to coarse, rows, columns."""
        levels = self.head_shared(levels)
        scores = [self.score_output(level) for level in self.head_scores(levels)]
        sides = [self.side_output(level) for level in self.head_sides(levels)]
        points, strides = places([level.shape[-1] for level in levels], STRIDES, levels[0].device)
        return DenseOutput(
            torch.cat([raw.flatten(2).transpose(1, 2) for raw in scores], 1)[..., 0].float(),
            torch.cat([raw.flatten(2).transpose(1, 2) for raw in sides], 1).float(),
            points,
            strides,
        )

    def losses(self, images: Tensor, targets: list[Target]) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss of a batch of letterboxed uint8 [N, S, S, 3], and its parts."""
        output = self.outputs(self.features(images))
        with torch.autocast(images.device.type, enabled=False):
            return dense_loss(output, targets, self.network.assignment, self.network.loss)

    def detect(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Detector.detect`."""
        output = self.outputs(self.features(images))
        # The best places first: distributions of the other thousands need not be turned into boxes.
        best = output.logits.topk(self.network.proposals, dim=1)
        sides = output.sides.gather(1, best.indices[..., None].expand(-1, -1, output.sides.shape[-1]))
        boxes = boxes_of(sides, output.points[best.indices], output.strides[best.indices])
        return boxes.clamp(0, images.shape[1]), torch.sigmoid(best.values)
