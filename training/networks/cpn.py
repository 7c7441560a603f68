"""Cascaded pyramid network (Chen et al. 2017): GlobalNet finds the easy joints, RefineNet the hard.

GlobalNet is a feature pyramid on a ResNet with a head on each level. RefineNet takes the pyramid's levels, the coarser
the deeper, joins them at stride 4 and draws the map that is served; its loss is meant for the hardest joints of each
crop (``ohkm`` in a recipe's ``supervision``).

Upsampling is bilinear without aligned corners: cells keep their centres, as :mod:`service.crops` has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from training.networks.base import NetworkConfig, PoseNet, Unit
from training.networks.resnet import ResNetName, describe, pyramid


def _conv_norm(inputs: int, outputs: int, kernel: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def _head(inputs: int, outputs: int) -> nn.Conv2d:
    head = nn.Conv2d(inputs, outputs, 3, padding=1)
    nn.init.normal_(head.weight, std=0.001)
    nn.init.zeros_(head.bias)  # type: ignore[arg-type]
    return head


def resize(x: Tensor, like: Tensor) -> Tensor:
    """[N, C, h, w] to the height and width of ``like``; the centres of cells stay where they are in the crop."""
    # By a factor, not to a size, which an exported graph would work out from shapes at run time.
    factor = float(like.shape[-1] // x.shape[-1])
    return functional.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution with half the channels between, beside a shortcut (256 -> 128 -> 256)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        middle = outputs // 2
        self.body = nn.Sequential(
            _conv_norm(inputs, middle),
            nn.ReLU(inplace=True),
            _conv_norm(middle, middle, 3),
            nn.ReLU(inplace=True),
            _conv_norm(middle, outputs),
        )
        self.shortcut = nn.Identity() if inputs == outputs else _conv_norm(inputs, outputs)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H, W]."""
        out: Tensor = self.relu(self.shortcut(x) + self.body(x))
        return out


class GlobalNet(nn.Module):
    """Feature pyramid with a head on each level.

    Args:
        inputs: channels of the backbone's features, fine to coarse.
        channels: of the pyramid.
        outputs: R * K.
    """

    def __init__(self, inputs: Sequence[int], channels: int, outputs: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(
            nn.Sequential(_conv_norm(count, channels), nn.ReLU(inplace=True)) for count in inputs
        )
        self.merges = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in inputs[1:])
        self.heads = nn.ModuleList(
            nn.Sequential(_conv_norm(channels, channels), nn.ReLU(inplace=True), _head(channels, outputs))
            for _ in inputs
        )

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Backbone's features, fine to coarse -> pyramid and raw maps of the levels' own sizes, both fine to coarse."""
        levels: list[Tensor] = []
        for index in reversed(range(len(features))):
            level = self.laterals[index](features[index])
            if levels:
                level = level + self.merges[index](resize(levels[0], level))
            levels.insert(0, level)
        return levels, [head(level) for head, level in zip(self.heads, levels, strict=True)]


class RefineNet(nn.Module):
    """``i`` bottlenecks on the pyramid's level ``i`` (none on the finest), all joined at the finest level's size."""

    def __init__(self, levels: int, channels: int, outputs: int) -> None:
        super().__init__()
        self.cascades = nn.ModuleList(
            nn.Sequential(*(Bottleneck(channels, channels) for _ in range(index))) for index in range(levels)
        )
        self.join = Bottleneck(levels * channels, channels)
        self.head = _head(channels, outputs)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Pyramid, fine to coarse -> raw map [N, outputs, H, W] of the finest level's size."""
        refined = [
            resize(cascade(level), levels[0]) if index else level
            for index, (cascade, level) in enumerate(zip(self.cascades, levels, strict=True))
        ]
        out: Tensor = self.head(self.join(torch.cat(refined, 1)))
        return out


class CPN(PoseNet):
    """GlobalNet's maps as the levels of the first stage, coarse to fine, then RefineNet's map.

    Args:
        joints: K heatmaps for each head.
        heads: names of the supervision radii, one head each.
        backbone: see :func:`training.networks.resnet.pyramid`.
        width: channels of the light backbone's first stage.
        pyramid_channels: of GlobalNet and RefineNet.
    """

    def __init__(
        self,
        joints: int,
        heads: Sequence[str] = ("medium",),
        *,
        backbone: ResNetName = "resnet50",
        width: int = 32,
        pyramid_channels: int = 256,
    ) -> None:
        levels = 4
        super().__init__(joints, heads, [*(Unit(0, 2, level, levels) for level in range(levels)), Unit(1, 2)])
        self.backbone = pyramid(backbone, width)
        self.global_net = GlobalNet(self.backbone.channels, pyramid_channels, self.channels)
        self.refine_net = RefineNet(levels, pyramid_channels, self.channels)

    @property
    def backbones(self) -> list[nn.Module]:
        """What ImageNet weights may be loaded into."""
        return [self.backbone]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [N, 3, H, W] to five raw maps [N, R, K, H/4, W/4], RefineNet's last."""
        levels, maps = self.global_net(self.backbone(images))
        coarse_to_fine = [resize(raw, maps[0]) for raw in reversed(maps[1:])]
        return [self.split(raw) for raw in (*coarse_to_fine, maps[0], self.refine_net(levels))]


class CPNConfig(NetworkConfig):
    """Hyper-parameters of the cascaded pyramid network; the defaults are the published ones."""

    name: Literal["cpn"] = "cpn"
    backbone: ResNetName = "resnet50"
    width: int = Field(32, ge=8, description="channels of the light backbone's first stage")
    pyramid_channels: int = Field(256, ge=8, multiple_of=2)

    @property
    def description(self) -> str:
        """For the model card."""
        size = describe(self.backbone, self.width)
        return f"Cascaded pyramid network (Chen et al. 2017), {size}, pyramid of {self.pyramid_channels} channels"

    def build(self, joints: int, heads: Sequence[str]) -> CPN:
        """Freshly initialised."""
        return CPN(joints, heads, backbone=self.backbone, width=self.width, pyramid_channels=self.pyramid_channels)
