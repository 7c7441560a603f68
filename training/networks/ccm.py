"""Cascaded context mixer (CCM: Zhang, Chen, Tao, "Towards High Performance Human Keypoint Detection", 2020).

A mixer sees its features in three parallel ways: a 1x1 path, squeeze-and-excite over channels, and convolutions of
four dilations over space. Mixers stand in series; each draws maps, and what is supervised after mixer i is the sum of
the maps of mixers 0 to i: later mixers correct the earlier ones.

The authors released no code and print no widths in what could be read. The mixer follows the public description of
its predecessor (PCR, 2019): out = skip + dilated * excite, a quarter of the width for each dilation, a squeeze to a
quarter of the width. Number and width of the mixers are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor, cat, nn
from torch.nn import functional

from training.networks.base import NetworkConfig, PoseNet, Unit
from training.networks.hrnet import HRNetBackbone, initialise
from training.networks.resnet import ResNetName, describe, pyramid

Backbone = Literal["hrnet_w32", "hrnet_w48", "light", "resnet18", "resnet50", "resnet101", "resnet152"]

DILATIONS = (1, 2, 3, 4)
_SQUEEZE = 4


def _conv_norm_relu(inputs: int, outputs: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=dilation * (kernel // 2), dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class ContextMixer(nn.Module):
    """[N, inputs, H, W] to [N, width, H, W]; ``width`` a multiple of 4."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.skip = _conv_norm_relu(inputs, width, 1)
        self.dilated = nn.ModuleList(_conv_norm_relu(inputs, width // len(DILATIONS), 3, d) for d in DILATIONS)
        self.excite = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(inputs, width // _SQUEEZE, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width // _SQUEEZE, width, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Skip plus the dilated features, each channel weighted by what the whole crop says of it."""
        spatial = cat([path(x) for path in self.dilated], dim=1)
        mixed: Tensor = self.skip(x) + spatial * self.excite(x)
        return mixed


class ResNetFeatures(nn.Module):
    """A ResNet and a feature pyramid down to stride 4: images [N, 3, H, W] to [N, channels, H/4, W/4]."""

    def __init__(self, name: ResNetName, width: int, channels: int) -> None:
        super().__init__()
        self.resnet = pyramid(name, width)
        self.laterals = nn.ModuleList(nn.Conv2d(count, channels, 1) for count in self.resnet.channels)
        self.smooth = _conv_norm_relu(channels, channels, 3)
        initialise(self.laterals)
        initialise(self.smooth)

    def forward(self, images: Tensor) -> Tensor:
        """Coarse levels are enlarged bilinearly (cell centres stay in place) and added to the finer ones."""
        features: list[Tensor] = self.resnet(images)
        levels = [lateral(x) for lateral, x in zip(self.laterals, features, strict=True)]
        x = levels[-1]
        for level in reversed(levels[:-1]):
            x = level + functional.interpolate(x, size=level.shape[-2:], mode="bilinear", align_corners=False)
        out: Tensor = self.smooth(x)
        return out


class ContextMixerNet(PoseNet):
    """Backbone, mixers in series, and one unit for each running sum of their maps.

    Args:
        joints: K.
        heads: names of the R supervision radii.
        backbone: what draws the features.
        backbone_width: channels of the light backbone's first stage.
        features: channels of the pyramid of a ResNet; HRNet gives its own.
        mixers: number of mixers.
        width: channels of the mixers, a multiple of 4.
    """

    def __init__(
        self,
        joints: int,
        heads: Sequence[str] = ("medium",),
        *,
        backbone: Backbone = "hrnet_w32",
        backbone_width: int = 32,
        features: int = 256,
        mixers: int = 3,
        width: int = 128,
    ) -> None:
        super().__init__(joints, heads, [Unit(stage, mixers) for stage in range(mixers)])
        if backbone == "hrnet_w32" or backbone == "hrnet_w48":
            channels = int(backbone.removeprefix("hrnet_w"))
            self.backbone: nn.Module = HRNetBackbone(channels)
        else:
            channels = features
            self.backbone = ResNetFeatures(backbone, backbone_width, channels)
        self.mixers = nn.ModuleList(ContextMixer(width if stage else channels, width) for stage in range(mixers))
        self.outputs = nn.ModuleList(nn.Conv2d(width, self.channels, 1) for _ in range(mixers))
        initialise(self.mixers)
        for output in self.outputs:
            # A correction starts near zero, so that the running sums start near their first term.
            nn.init.normal_(output.get_parameter("weight"), std=0.001)
            nn.init.zeros_(output.get_parameter("bias"))

    @property
    def backbones(self) -> list[nn.Module]:
        """What ImageNet weights may be loaded into."""
        return [self.backbone.resnet if isinstance(self.backbone, ResNetFeatures) else self.backbone]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [N, 3, H, W] to the running sums, one raw map [N, R, K, H/4, W/4] for each mixer."""
        x = self.backbone(images)
        sums: list[Tensor] = []
        for mixer, output in zip(self.mixers, self.outputs, strict=True):
            x = mixer(x)
            raw = output(x)
            sums.append(sums[-1] + raw if sums else raw)
        return [self.split(raw) for raw in sums]


class CCMConfig(NetworkConfig):
    """Hyper-parameters of the cascaded context mixer; HRNet-W48 is the backbone of its best published entry."""

    name: Literal["ccm"] = "ccm"
    backbone: Backbone = "hrnet_w32"
    backbone_width: int = Field(32, ge=8, multiple_of=2, description="channels of the light backbone's first stage")
    features: int = Field(256, ge=8, description="channels of a ResNet's feature pyramid")
    mixers: int = Field(3, ge=1, le=8, description="in series; each running sum of their maps is supervised")
    width: int = Field(128, ge=8, multiple_of=4, description="channels of the mixers")

    @property
    def description(self) -> str:
        """For the model card."""
        if self.backbone == "hrnet_w32" or self.backbone == "hrnet_w48":
            trunk = f"HRNet-{self.backbone[-3:].upper()}"
        else:
            trunk = describe(self.backbone, self.backbone_width)
        return f"Cascaded context mixer (Zhang et al. 2020), {self.mixers} mixers of {self.width} channels on {trunk}"

    def build(self, joints: int, heads: Sequence[str]) -> ContextMixerNet:
        """Freshly initialised."""
        return ContextMixerNet(
            joints,
            heads,
            backbone=self.backbone,
            backbone_width=self.backbone_width,
            features=self.features,
            mixers=self.mixers,
            width=self.width,
        )
