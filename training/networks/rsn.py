"""Residual Steps Network (Cai et al. 2020, arXiv:2003.04030), winner of COCO 2019 keypoints.

MSPN's chain of stages with another block, whose four branches of one to four convolutions feed each other, and the
Pose Refine Machine on the served map. As published, with 17 joints and without that machine: RSN-18 9.16 M parameters
and 2.25 GMACs at 256x192, four stages of it 38.46 M and 9.22.

The public code defines the machine but never calls it; here it is part of the graph. Nor does it define RSN-50, of
which the paper gives 6.4 / 13.9 / 20.7 / 29.3 GFLOPs for 1 to 4 stages. Ours (``layers: [3, 4, 6, 3], expansion: 4,
branch: 24``) has ResNet-50's channels, and branches of 24/64 of the level's narrow width because that comes nearest:
6.33 / 13.78 / 21.23 / 28.68 GMACs and 34.46 M parameters in one stage. That it is the paper's network is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from training.networks.base import NetworkConfig
from training.networks.multi_stage import LEVELS, ConvNorm, Encoder, MultiStageNet

BRANCHES = 4


class ResidualSteps(nn.Module):
    """Residual Steps Block (section 3.2 of the paper).

    A 1x1 convolution (which carries the stride) is cut into four branches; branch i runs i convolutions of 3x3, each
    fed by the one before it plus the left branch's output of the same depth. The last outputs together give the
    block's, by another 1x1.

    Args:
        inputs: channels.
        outputs: channels.
        stride: 1 or 2.
        branch: channels of one branch.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, branch: int) -> None:
        super().__init__()
        self.enter = ConvNorm(inputs, BRANCHES * branch, 1, stride)
        self.steps = nn.ModuleList(
            nn.ModuleList(ConvNorm(branch, branch, 3) for _ in range(count)) for count in range(1, BRANCHES + 1)
        )
        self.leave = ConvNorm(BRANCHES * branch, outputs, 1, relu=False)
        self.shortcut: nn.Module = (
            nn.Identity() if stride == 1 and inputs == outputs else ConvNorm(inputs, outputs, 1, stride, relu=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        left: list[Tensor] = []
        ends: list[Tensor] = []
        for piece, steps in zip(self.enter(x).chunk(BRANCHES, 1), self.steps, strict=True):
            branch: list[Tensor] = []
            assert isinstance(steps, nn.ModuleList)
            for depth, step in enumerate(steps):
                before = branch[-1] if branch else piece
                branch.append(step(before + left[depth] if depth < len(left) else before))
            ends.append(branch[-1])
            left = branch
        return functional.relu(self.leave(torch.cat(ends, 1)) + self.shortcut(x), inplace=True)


class PoseRefineMachine(nn.Module):
    """Pose Refine Machine (section 3.3): weighs each map as a whole and cell by cell, out = f * (1 + c * s).

    The public class passes f through ReLU. Here that is done only on the way to the weights c and s: the served maps
    of a squared-error radius are cut at 0 anyway, where both are equal, while a radius whose raw map is a logit
    (softmax, binary cross-entropy) must be able to say less than one half.

    Args:
        channels: R * K.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = ConvNorm(channels, channels, 3, relu=False)
        self.whole = nn.Sequential(ConvNorm(channels, channels, 1), ConvNorm(channels, channels, 1), nn.Sigmoid())
        self.cells = nn.Sequential(
            ConvNorm(channels, channels, 1),
            nn.Conv2d(channels, channels, 9, padding=4, groups=channels),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Raw maps [N, R * K, h, w] to the same shape."""
        entered = self.enter(x)
        positive = functional.relu(entered)
        whole = self.whole(positive.mean((2, 3), keepdim=True))
        return torch.addcmul(entered, entered, whole * self.cells(positive))


class RSN(MultiStageNet):
    """The chain with residual steps."""


class RSNConfig(NetworkConfig):
    """Hyper-parameters; the defaults are RSN-18 with its Pose Refine Machine."""

    name: Literal["rsn"] = "rsn"
    stages: int = Field(1, ge=1, le=4)
    layers: tuple[int, int, int, int] = Field((2, 2, 2, 2), description="blocks of each level")
    width: int = Field(64, ge=8, description="channels of the stem and of the finest level before expansion")
    expansion: int = Field(1, ge=1, le=4, description="channels of a level over its narrow width; 1 as published")
    branch: int = Field(26, ge=1, le=64, description="channels of a branch, in 64ths of the block's narrow width")
    features: int = Field(256, ge=8, description="channels of the decoder")
    prm: bool = Field(True, description="Pose Refine Machine on the served map")
    align_corners: bool = Field(False, description="enlarge as the public code does; only for weights trained with it")

    @property
    def description(self) -> str:
        """For the model card."""
        plan = ", ".join(map(str, self.layers))
        return (
            f"RSN (Cai et al. 2020), {self.stages} stages of residual steps ({plan}), {self.width * self.expansion} to "
            f"{self.width * self.expansion * 8} channels, {'with' if self.prm else 'without'} Pose Refine Machine"
        )

    def _block(self, inputs: int, outputs: int, stride: int) -> ResidualSteps:
        # The public block measures its branches by its input; with expansion that would be ResNet's wide side.
        narrow = inputs if self.expansion == 1 else outputs // self.expansion
        return ResidualSteps(inputs, outputs, stride, branch=max(narrow * self.branch // 64, 1))

    def build(self, joints: int, heads: Sequence[str]) -> RSN:
        """Freshly initialised."""
        channels = [self.width * self.expansion * 2**level for level in range(LEVELS)]
        encoders = [
            Encoder(self._block, self.layers, self.width, channels, first=not stage) for stage in range(self.stages)
        ]
        return RSN(
            joints, heads, encoders, width=self.width, features=self.features, align_corners=self.align_corners,
            refine=PoseRefineMachine(joints * len(heads)) if self.prm else None,
        )  # fmt: skip
