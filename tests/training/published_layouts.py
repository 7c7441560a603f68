"""Small networks under the names that published weights have, written from the papers and the names alone.

They share nothing with the networks of ``training/networks``: what an import makes of their weights is compared with
what they compute. Every one takes images normalised as its own code does it, and draws [N, K, H/4, W/4].
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

JOINTS = 17
MEAN, DEVIATION = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])


def rgb(crops: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] as HRNet's authors, mmpose and ViTPose read them."""
    return ((crops.float() - MEAN) / DEVIATION).permute(0, 3, 1, 2)


def bgr(crops: Tensor) -> Tensor:
    """As Megvii: blue first, with blue's mean."""
    return ((crops.flip(-1).float() - MEAN.flip(0)) / DEVIATION.flip(0)).permute(0, 3, 1, 2)


def bgr_with_means_of_rgb(crops: Tensor) -> Tensor:
    """As the simple baseline's authors: blue first, with red's mean."""
    return ((crops.flip(-1).float() - MEAN) / DEVIATION).permute(0, 3, 1, 2)


class PoseResNet(ResNet):
    """The simple baseline on ResNet-18."""

    def __init__(self, filters: int = 16) -> None:
        super().__init__(BasicBlock, [2, 2, 2, 2])
        del self.fc
        layers: list[nn.Module] = []
        for inputs in (512, filters, filters):
            layers += [nn.ConvTranspose2d(inputs, filters, 4, 2, 1, bias=False), nn.BatchNorm2d(filters), nn.ReLU()]
        self.deconv_layers = nn.Sequential(*layers)
        self.final_layer = nn.Conv2d(filters, JOINTS, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.final_layer(self.deconv_layers(x))


def _norm(inputs: int, outputs: int, kernel: int, stride: int = 1, relu: bool = True) -> nn.Sequential:
    parts = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*parts, *([nn.ReLU()] if relu else []))


class HRNet(nn.Module):
    """Two blocks on a branch, one module in a stage but two in the third."""

    def __init__(self, width: int = 8, stem: int = 16) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, stem, 3, 2, 1, bias=False), nn.BatchNorm2d(stem)
        self.conv2, self.bn2 = nn.Conv2d(stem, stem, 3, 2, 1, bias=False), nn.BatchNorm2d(stem)
        shortcut = _norm(stem, 4 * stem, 1, relu=False)
        self.layer1 = nn.Sequential(Bottleneck(stem, stem, downsample=shortcut), Bottleneck(4 * stem, stem))
        w = [width * 2**i for i in range(4)]
        self.transition1 = nn.ModuleList([_norm(4 * stem, w[0], 3), nn.Sequential(_norm(4 * stem, w[1], 3, 2))])
        for stage in (2, 3):
            grown = nn.Sequential(_norm(w[stage - 1], w[stage], 3, 2))
            setattr(self, f"transition{stage}", nn.ModuleList([*(nn.Identity() for _ in range(stage)), grown]))
        self.stage2 = nn.Sequential(self._module(w[:2], 2))
        self.stage3 = nn.Sequential(self._module(w[:3], 3), self._module(w[:3], 3))
        self.stage4 = nn.Sequential(self._module(w, 1))
        self.final_layer = nn.Conv2d(width, JOINTS, 1)

    @staticmethod
    def _module(w: Sequence[int], outputs: int) -> nn.Module:
        module = nn.Module()
        module.branches = nn.ModuleList(nn.Sequential(BasicBlock(c, c), BasicBlock(c, c)) for c in w)
        module.fuse_layers = nn.ModuleList()
        for to in range(outputs):
            row = nn.ModuleList()
            for source in range(len(w)):
                if source > to:  # enlarged by hand in forward
                    row.append(_norm(w[source], w[to], 1, relu=False))
                elif source == to:
                    row.append(nn.Identity())
                else:
                    steps = [_norm(w[source], w[source], 3, 2) for _ in range(to - source - 1)]
                    row.append(nn.Sequential(*steps, _norm(w[source], w[to], 3, 2, relu=False)))
            module.fuse_layers.append(row)
        return module

    def _exchange(self, module: nn.Module, xs: list[Tensor]) -> list[Tensor]:
        xs = [branch(x) for branch, x in zip(module.branches, xs, strict=True)]
        mixed = []
        for to, row in enumerate(module.fuse_layers):
            total = torch.zeros_like(xs[to])
            for source, layer in enumerate(row):
                part = layer(xs[source])
                if source > to:
                    part = part.repeat_interleave(2 ** (source - to), 2).repeat_interleave(2 ** (source - to), 3)
                total = total + part
            mixed.append(F.relu(total))
        return mixed

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        x = self.layer1(x)
        xs = [layer(x) for layer in self.transition1]
        for stage in (2, 3, 4):
            for module in getattr(self, f"stage{stage}"):
                xs = self._exchange(module, xs)
            if stage < 4:
                xs.append(getattr(self, f"transition{stage}")[stage](xs[-1]))
        return self.final_layer(xs[0])


class ConvBn(nn.Module):
    """Megvii's unit: a convolution with bias and its normalisation, named ``conv`` and ``bn``."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return F.relu(x) if self.relu else x


class MspnBlock(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv_bn_relu1 = ConvBn(inputs, planes, 1)
        self.conv_bn_relu2 = ConvBn(planes, planes, 3, stride)
        self.conv_bn_relu3 = ConvBn(planes, planes * 4, 1, relu=False)
        if stride > 1 or inputs != planes * 4:
            self.downsample = ConvBn(inputs, planes * 4, 1, stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_bn_relu3(self.conv_bn_relu2(self.conv_bn_relu1(x)))
        return F.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class RsnBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.width = inputs * 26 // 64
        self.conv_bn_relu1 = ConvBn(inputs, 4 * self.width, 1, stride)
        for branch in range(1, 5):
            for step in range(1, branch + 1):
                setattr(self, f"conv_bn_relu2_{branch}_{step}", ConvBn(self.width, self.width, 3))
        self.conv_bn_relu3 = ConvBn(4 * self.width, planes, 1, relu=False)
        if stride > 1 or inputs != planes:
            self.downsample = ConvBn(inputs, planes, 1, stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        s = self.conv_bn_relu1(x).split(self.width, 1)
        a = {(0, step): 0 for step in range(1, 5)}
        for branch in range(1, 5):
            for step in range(1, branch + 1):
                own = s[branch - 1] if step == 1 else a[branch, step - 1]
                left = a[branch - 1, step] if step < branch else 0
                a[branch, step] = getattr(self, f"conv_bn_relu2_{branch}_{step}")(own + left)
        y = self.conv_bn_relu3(torch.cat([a[1, 1], a[2, 2], a[3, 3], a[4, 4]], 1))
        return F.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class MultiStage(nn.Module):
    """Two stages of MSPN or RSN by Megvii's names."""

    def __init__(self, block: type[MspnBlock] | type[RsnBlock], width: int = 16, features: int = 16) -> None:
        super().__init__()
        self.top = nn.Module()
        self.top.conv = ConvBn(3, width, 7, 2)
        levels = [width * 2**level * block.expansion for level in range(4)]
        for stage in range(2):
            module = nn.Module()
            module.downsample, module.upsample = nn.Module(), nn.Module()
            inputs = width
            for level, outputs in enumerate(levels):
                blocks = [block(inputs, width * 2**level, 2 if level else 1)]
                blocks += [block(outputs, width * 2**level, 1)] * (level == 1)
                setattr(module.downsample, f"layer{level + 1}", nn.Sequential(*blocks))
                inputs = outputs
            for number, channels in enumerate(reversed(levels), 1):
                up = nn.Module()
                up.u_skip = ConvBn(channels, features, 1, relu=False)
                if number > 1:
                    up.up_conv = ConvBn(features, features, 1, relu=False)
                if stage == 0:
                    up.skip1, up.skip2 = ConvBn(channels, channels, 1), ConvBn(features, channels, 1)
                    if number == 4:
                        up.cross_conv = ConvBn(features, width, 1)
                up.res_conv1, up.res_conv2 = ConvBn(features, features, 1), ConvBn(features, JOINTS, 3, relu=False)
                setattr(module.upsample, f"up{number}", up)
            setattr(self, f"stage{stage}", module)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.top.conv(x), 3, 2, 1)
        skips: dict[int, Tensor] = {}
        heat = x
        for stage in (self.stage0, self.stage1):
            downs = []
            for level in range(1, 5):
                x = getattr(stage.downsample, f"layer{level}")(x)
                x = x + skips[level] if skips else x
                downs.append(x)
            out: Tensor | None = None
            fresh = {}
            for number, down in enumerate(reversed(downs), 1):
                up = getattr(stage.upsample, f"up{number}")
                lateral = up.u_skip(down)
                if out is not None:
                    out = F.interpolate(out, size=down.shape[-2:], mode="bilinear", align_corners=True)
                    lateral = lateral + up.up_conv(out)
                out = F.relu(lateral)
                if stage is self.stage0:
                    fresh[5 - number] = up.skip1(down) + up.skip2(out)
                heat = up.res_conv2(up.res_conv1(out))
            skips = fresh
            x = up.cross_conv(out) if stage is self.stage0 else x
        return heat


def as_mmpose(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under mmpose's names, where convolutions before a normalisation have no bias."""
    renamed = {}
    multi = "backbone.multi_stage_rsn" if any("relu2_4_4" in n for n in state) else "backbone.multi_stage_mspn"
    for name, value in state.items():
        new = re.sub(r"^top\.conv\.", "backbone.top.top.0.", name)
        new = re.sub(r"^stage(\d)\.(?=downsample|upsample)", rf"{multi}.\1.", new)
        new = re.sub(r"\.u_skip\.", ".in_skip.", new)
        new = re.sub(r"\.skip(\d)\.", r".out_skip\1.", new)
        if multi.endswith("mspn"):
            new = re.sub(r"conv_bn_relu(\d)\.(conv|bn)\.", r"\2\1.", new)
        else:
            new = new.replace("conv_bn_relu3.", "conv_bn3.")
        if head := re.fullmatch(r".*\.(\d)\.upsample\.up(\d)\.res_conv(\d)\.(.*)", new):
            number = int(head[1]) * 4 + int(head[2]) - 1
            new = f"keypoint_head.predict_layers.{number}.conv_layers.{int(head[3]) - 1}.{head[4]}"
        if new == name:  # networks without stages
            new = f"keypoint_head.{name}" if name.startswith(("final_layer", "deconv_layers")) else f"backbone.{name}"
        elif re.search(r"conv\d?\.bias$|top\.0\.conv\.bias$", new) and not value.any():
            continue
        renamed[new] = value
    return renamed
