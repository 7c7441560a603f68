"""What MSPN (Li et al. 2019) and RSN (Cai et al. 2020) share: encoder and decoder stages, each fed by the one before.

A stage goes down through four levels of residual blocks (strides 4 to 32) and up again through as many units; every
unit draws heatmaps, resized to stride 4. Between stages, features of both ways are carried over to the next
encoder, level by level (cross-stage feature aggregation), beside the finest decoder features, its input.
Every convolution carries a bias and batch normalisation, as published.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional

from training.networks.base import PoseNet, Unit

LEVELS = 4
# inputs, outputs, stride -> one residual block.
BlockMaker = Callable[[int, int, int], nn.Module]


class ConvNorm(nn.Sequential):
    """Convolution with bias, batch normalisation and, unless ``relu`` is off, ReLU; padded to keep the size."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, relu: bool = True) -> None:
        parts: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2), nn.BatchNorm2d(outputs)]
        super().__init__(*parts, *([nn.ReLU(inplace=True)] if relu else []))


class Encoder(nn.Module):
    """Four levels of residual blocks, its parts named as in torchvision's ResNet.

    The first stage's encoder begins with the 7x7 convolution and the pooling that lead from the image to stride 4;
    later ones take features of stride 4.

    Args:
        block: makes one residual block.
        layers: blocks in each level.
        width: channels of the input features.
        channels: of the four levels.
        first: whether it begins at the image.
    """

    def __init__(
        self, block: BlockMaker, layers: Sequence[int], width: int, channels: Sequence[int], *, first: bool
    ) -> None:
        super().__init__()
        self.channels = tuple(channels)
        if first:
            self.conv1 = nn.Conv2d(3, width, 7, 2, 3)
            self.bn1 = nn.BatchNorm2d(width)
        self.first = first
        inputs = width
        for level, (count, outputs) in enumerate(zip(layers, channels, strict=True)):
            blocks = [block(inputs, outputs, 1 if level == 0 else 2)]
            blocks += [block(outputs, outputs, 1) for _ in range(count - 1)]
            self.add_module(f"layer{level + 1}", nn.Sequential(*blocks))
            inputs = outputs

    def forward(self, x: Tensor, carried: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Features of the levels, fine to coarse.

        Args:
            x: images [N, 3, H, W] for the first stage, else features [N, width, H/4, W/4].
            carried: what the stage before adds to each level, fine to coarse, shaped as the results.
        """
        if self.first:
            x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x)), inplace=True), 3, 2, 1)
        features = []
        for level in range(LEVELS):
            x = self.get_submodule(f"layer{level + 1}")(x)
            if carried is not None:
                x = x + carried[level]
            features.append(x)
        return features


class Decoder(nn.Module):
    """Four units, coarse to fine: a lateral 1x1, the coarser unit enlarged, and the head that draws the maps."""

    def __init__(self, channels: Sequence[int], features: int, outputs: int, *, align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.laterals = nn.ModuleList(ConvNorm(c, features, 1, relu=False) for c in reversed(channels))
        self.enlarged = nn.ModuleList(ConvNorm(features, features, 1, relu=False) for _ in range(LEVELS - 1))
        self.heads = nn.ModuleList(
            nn.Sequential(ConvNorm(features, features, 1), ConvNorm(features, outputs, 3, relu=False))
            for _ in range(LEVELS)
        )

    def resize(self, x: Tensor, like: Tensor) -> Tensor:
        """Bilinear to the size of ``like``."""
        if x.shape[-2:] == like.shape[-2:]:
            return x
        return functional.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=self.align_corners)

    def forward(self, encoded: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Encoder features (fine to coarse) to unit features and raw maps at stride 4, both coarse to fine."""
        units: list[Tensor] = []
        for level, x in enumerate(reversed(encoded)):
            unit = self.laterals[level](x)
            if units:
                unit = unit + self.enlarged[level - 1](self.resize(units[-1], x))
            units.append(functional.relu(unit, inplace=True))
        return units, [self.resize(head(unit), units[-1]) for head, unit in zip(self.heads, units, strict=True)]


class Carry(nn.Module):
    """What one stage hands to the next: aggregated features for each encoder level, and the next input."""

    def __init__(self, channels: Sequence[int], features: int, width: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(ConvNorm(c, c, 1) for c in channels)
        self.up = nn.ModuleList(ConvNorm(features, c, 1) for c in channels)
        self.cross = ConvNorm(features, width, 1)

    def forward(self, encoded: Sequence[Tensor], units: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Encoder features (fine to coarse), units (coarse to fine) to the next stage's input and additions."""
        pairs = zip(self.down, encoded, self.up, reversed(units), strict=True)
        return self.cross(units[-1]), [down(below) + up(unit) for down, below, up, unit in pairs]


class MultiStageNet(PoseNet):
    """A chain of such stages.

    Args:
        joints: K.
        heads: names of the R supervision radii.
        encoders: one for each stage, the first of which begins at the image.
        width: channels of a later stage's input (64 as published).
        features: channels of the decoder (256 as published).
        align_corners: enlarge as the published code does, for weights trained with it. It moves the cells of coarse
            levels against the pixel-centre convention (by up to half a cell of the coarse level at the border), so
            networks trained here leave it off.
        refine: applied to the last map [N, R * K, h, w].
    """

    def __init__(
        self,
        joints: int,
        heads: Sequence[str],
        encoders: Sequence[Encoder],
        *,
        width: int,
        features: int,
        align_corners: bool = False,
        refine: nn.Module | None = None,
    ) -> None:
        stages = len(encoders)
        units = [Unit(stage, stages, level, LEVELS) for stage in range(stages) for level in range(LEVELS)]
        super().__init__(joints, heads, units)
        self.encoders = nn.ModuleList(encoders)
        self.decoders = nn.ModuleList(
            Decoder(encoder.channels, features, self.channels, align_corners=align_corners) for encoder in encoders
        )
        self.carries = nn.ModuleList(Carry(encoder.channels, features, width) for encoder in encoders[1:])
        self.refine = refine
        self.apply(_initialise)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [N, 3, H, W] to raw maps [N, R, K, H/4, W/4]: stages in order, coarse to fine in each."""
        x, carried = images, None
        maps: list[Tensor] = []
        for stage, (encoder, decoder) in enumerate(zip(self.encoders, self.decoders, strict=True)):
            encoded = encoder(x, carried)
            units, drawn = decoder(encoded)
            maps += drawn
            if stage < len(self.carries):
                x, carried = self.carries[stage](encoded, units)
        if self.refine is not None:
            maps[-1] = self.refine(maps[-1])
        return [self.split(raw) for raw in maps]


def _initialise(module: nn.Module) -> None:
    """Gaussian (He et al. 2015), which Megvii's report found better than ImageNet's weights; biases 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
