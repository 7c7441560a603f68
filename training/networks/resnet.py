"""Residual backbones (He et al. 2015) as feature pyramids.

torchvision's, with its names of weights, so that ImageNet weights fit; and a light one for CPUs, the ResNet-18 layout
at half width. Plain 3x3 convolutions rather than depthwise ones: on CPUs they train several times faster for the same
work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torchvision.models import resnet

ResNetName = Literal["light", "resnet18", "resnet50", "resnet101", "resnet152"]

_LAYOUTS: dict[str, tuple[type[resnet.BasicBlock | resnet.Bottleneck], list[int]]] = {
    "resnet18": (resnet.BasicBlock, [2, 2, 2, 2]),
    "resnet50": (resnet.Bottleneck, [3, 4, 6, 3]),
    "resnet101": (resnet.Bottleneck, [3, 4, 23, 3]),
    "resnet152": (resnet.Bottleneck, [3, 8, 36, 3]),
}


def _conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, *, scale: float = 1.0) -> nn.Sequential:
    norm = nn.BatchNorm2d(outputs)
    nn.init.constant_(norm.weight, scale)
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), norm)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _conv_bn(inputs, outputs, 3, stride)
        # Each block starts as its shortcut (Goyal et al. 2017, section 5.1): a safer start at large learning rates.
        self.second = _conv_bn(outputs, outputs, 3, scale=0.0)
        self.shortcut = nn.Identity() if stride == 1 and inputs == outputs else _conv_bn(inputs, outputs, 1, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""
        shortcut = self.shortcut(x)
        return self.relu(shortcut + self.second(self.relu(self.first(x))))


class LightResNet(nn.Module):
    """Four stages of basic blocks; the last three (strides 8, 16, 32) are given to a feature pyramid, as detectors do.

    Args:
        width: channels of the first stage; each further stage doubles them.
        blocks: blocks in each stage.
        first: the first stage that is given out; 0 adds stride 4.
    """

    def __init__(self, width: int = 32, blocks: Sequence[int] = (2, 2, 2, 2), *, first: int = 1) -> None:
        super().__init__()
        self.first = first
        # Two strided 3x3 convolutions instead of 7x7 and pooling: a third of the work, as good (He et al. 2018).
        self.stem = nn.Sequential(
            _conv_bn(3, width // 2, 3, 2),
            nn.ReLU(inplace=True),
            _conv_bn(width // 2, width, 3, 2),
            nn.ReLU(inplace=True),
        )
        stages = []
        channels = width
        for index, count in enumerate(blocks):
            outputs = width * 2**index
            layers = [BasicBlock(channels, outputs, 1 if index == 0 else 2)]
            layers += [BasicBlock(outputs, outputs, 1) for _ in range(count - 1)]
            stages.append(nn.Sequential(*layers))
            channels = outputs
        self.stages = nn.ModuleList(stages)
        self.channels: tuple[int, ...] = tuple(width * 2**index for index in range(first, len(blocks)))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images [N, 3, H, W] -> features of the stages from ``first`` on, with ``channels`` channels."""
        x = self.stem(x)
        features = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index >= self.first:
                features.append(x)
        return features


class ResNet(resnet.ResNet):
    """torchvision's ResNet without its classifier: weights have torchvision's names, features come out at all strides.

    Attributes:
        channels: of the features at strides 4, 8, 16, 32.
    """

    def __init__(self, name: str) -> None:
        block, layers = _LAYOUTS[name]
        super().__init__(block, layers, zero_init_residual=True)
        del self.avgpool, self.fc
        self.channels = tuple(64 * 2**index * block.expansion for index in range(4))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images [N, 3, H, W] -> features at strides 4, 8, 16, 32 with ``channels`` channels."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            features.append(x)
        return features


def pyramid(name: ResNetName, width: int) -> LightResNet | ResNet:
    """The backbone ``name`` with features at strides 4, 8, 16, 32; ``width`` is the light one's first stage's."""
    return LightResNet(width, first=0) if name == "light" else ResNet(name)


def describe(name: ResNetName, width: int) -> str:
    """The backbone in a phrase, for model cards."""
    return f"light ResNet of width {width}" if name == "light" else f"ResNet-{name.removeprefix('resnet')}"
