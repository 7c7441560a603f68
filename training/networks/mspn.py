"""Multi-Stage Pose Network (Li et al. 2019, arXiv:1901.00148), Megvii's winner of COCO 2018 keypoints.

Stages of ResNets with cross-stage feature aggregation (:mod:`training.networks.multi_stage`). As published, with
17 joints: 25.14 / 56.87 / 88.59 / 120.32 M parameters and 5.07 / 11.26 / 17.45 / 23.64 GMACs at 256x192 for 1 to 4
stages of ResNet-50.

Megvii's report moves blocks of ResNet-101 (3, 4, 23, 3) to the finer levels, where space is: (4, 8, 16, 3), at the
same FLOPs. Blocks of all levels cost alike, so with ResNet's channels (``width: 64``) the 31 blocks need 8.28 GMACs
in one stage where ResNet-101's 33 need 8.71; ``width: 66`` makes it 8.75. The report names no channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from training.networks.base import NetworkConfig
from training.networks.multi_stage import LEVELS, ConvNorm, Encoder, MultiStageNet


class _Residual(nn.Module):
    """What both blocks share: the shortcut, and torchvision's name for it."""

    downsample: nn.Module | None

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        same = stride == 1 and inputs == outputs
        self.downsample = None if same else ConvNorm(inputs, outputs, 1, stride, relu=False)

    def add_shortcut(self, body: Tensor, x: Tensor) -> Tensor:
        """ReLU of the block's body and its shortcut."""
        shortcut = x if self.downsample is None else self.downsample(x)
        return functional.relu(body + shortcut, inplace=True)


class Basic(_Residual):
    """Two 3x3 convolutions (ResNet-18)."""

    expansion = 1

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, stride)
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        return self.add_shortcut(self.bn2(self.conv2(y)), x)


class Bottleneck(_Residual):
    """1x1, 3x3 (which carries the stride) and 1x1 convolutions (ResNet-50 and -101)."""

    expansion = 4

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, stride)
        planes = outputs // self.expansion
        self.conv1, self.bn1 = nn.Conv2d(inputs, planes, 1), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, stride, 1), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, outputs, 1), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        y = functional.relu(self.bn2(self.conv2(y)), inplace=True)
        return self.add_shortcut(self.bn3(self.conv3(y)), x)


class MSPN(MultiStageNet):
    """The chain with ResNet encoders."""

    @property
    def backbones(self) -> list[nn.Module]:
        """The stages' encoders. Their state has torchvision's names (conv1 and bn1 only in the first stage's), so
        ImageNet weights load into each with ``strict=False``; convolutions' biases, which torchvision's lack, stay 0.
        """
        return list(self.encoders)


class MSPNConfig(NetworkConfig):
    """Hyper-parameters; the defaults are the published two-stage network."""

    name: Literal["mspn"] = "mspn"
    stages: int = Field(2, ge=1, le=4)
    blocks: Literal["bottleneck", "basic"] = Field("bottleneck", description="ResNet-50/101's or ResNet-18's")
    layers: tuple[int, int, int, int] = Field(
        (3, 4, 6, 3), description="blocks of each level: 3,4,6,3 is R50, 3,4,23,3 R101, 4,8,16,3 Megvii's report"
    )
    width: int = Field(64, ge=8, description="channels of the stem and of the finest level before expansion")
    features: int = Field(256, ge=8, description="channels of the decoder")
    align_corners: bool = Field(False, description="enlarge as Megvii's code does; only for weights trained with it")

    @property
    def description(self) -> str:
        """For the model card."""
        plan = ", ".join(map(str, self.layers))
        return (
            f"MSPN (Li et al. 2019), {self.stages} stages of {self.blocks} blocks ({plan}), "
            f"{self.width} to {self.width * 8} channels"
        )

    def build(self, joints: int, heads: Sequence[str]) -> MSPN:
        """Freshly initialised."""
        block = Bottleneck if self.blocks == "bottleneck" else Basic
        channels = [self.width * block.expansion * 2**level for level in range(LEVELS)]
        encoders = [Encoder(block, self.layers, self.width, channels, first=not stage) for stage in range(self.stages)]
        return MSPN(joints, heads, encoders, width=self.width, features=self.features, align_corners=self.align_corners)
