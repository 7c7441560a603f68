"""Simple baseline (Xiao et al. 2018): a ResNet and three transposed convolutions, nothing else.

As published: 256 channels of 4x4 kernels on ResNet-50, -101 or -152 pretrained on ImageNet; 34.0 / 53.0 / 68.6 M
parameters. The light backbone with fewer channels makes the form for CPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from training.networks.base import NetworkConfig, PoseNet, Unit, normalise
from training.networks.resnet import ResNetName, describe, pyramid


class SimpleBaseline(PoseNet):
    """One map, from the backbone's last stage.

    Args:
        joints: K heatmaps for each head.
        heads: names of the supervision radii, one head each.
        backbone: see :func:`training.networks.resnet.pyramid`.
        width: channels of the light backbone's first stage.
        deconv_channels: of the transposed convolutions.
        reversed_means: see :class:`SimpleBaselineConfig`.
    """

    shift: Tensor

    def __init__(
        self,
        joints: int,
        heads: Sequence[str] = ("medium",),
        *,
        backbone: ResNetName = "resnet50",
        width: int = 32,
        deconv_channels: int = 256,
        reversed_means: bool = False,
    ) -> None:
        super().__init__(joints, heads, [Unit(0, 1)])
        self.reversed_means = reversed_means
        if reversed_means:
            self.register_buffer("shift", _reversing_shift(), persistent=False)
        self.backbone = pyramid(backbone, width)
        layers: list[nn.Module] = []
        inputs = self.backbone.channels[-1]
        for _ in range(3):
            deconv = nn.ConvTranspose2d(inputs, deconv_channels, 4, stride=2, padding=1, bias=False)
            # The authors' code draws all new layers with this deviation.
            nn.init.normal_(deconv.weight, std=0.001)
            layers += [deconv, nn.BatchNorm2d(deconv_channels), nn.ReLU(inplace=True)]
            inputs = deconv_channels
        self.deconvs = nn.Sequential(*layers)
        self.output = nn.Conv2d(inputs, self.channels, 1)
        nn.init.normal_(self.output.weight, std=0.001)
        nn.init.zeros_(self.output.bias)  # type: ignore[arg-type]

    @property
    def backbones(self) -> list[nn.Module]:
        """What ImageNet weights may be loaded into."""
        return [self.backbone]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [N, 3, H, W] to one raw map [N, R, K, H/4, W/4]."""
        if self.reversed_means:
            images = images + self.shift
        return [self.split(self.output(self.deconvs(self.backbone(images)[-1])))]


def _reversing_shift() -> Tensor:
    """[3, 1, 1] added to a normalised image, so that red is less the mean of blue and blue less the mean of red."""
    black, white = normalise(torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 1, 1, 3))
    deviation = 255 / (white - black)
    mean = -black * deviation
    return (mean - mean.flip(0)) / deviation


class SimpleBaselineConfig(NetworkConfig):
    """Hyper-parameters of the simple baseline; the defaults are the published ones."""

    name: Literal["simple_baseline"] = "simple_baseline"
    backbone: ResNetName = "resnet50"
    width: int = Field(32, ge=8, description="channels of the light backbone's first stage")
    deconv_channels: int = Field(256, ge=8)
    reversed_means: bool = Field(
        False, description="subtract the channels' means in reverse, as the authors' code does; only for its weights"
    )

    @property
    def description(self) -> str:
        """For the model card."""
        size = describe(self.backbone, self.width)
        return f"Simple baseline (Xiao et al. 2018), {size}, transposed convolutions of {self.deconv_channels} channels"

    def build(self, joints: int, heads: Sequence[str]) -> SimpleBaseline:
        """Freshly initialised."""
        return SimpleBaseline(
            joints, heads, backbone=self.backbone, width=self.width, deconv_channels=self.deconv_channels,
            reversed_means=self.reversed_means,
        )  # fmt: skip
