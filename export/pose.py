"""What the graphs of the pose models compute, as torch modules: heads, mirror, flip average, fusion.

The arithmetic is training's own (``activate``, ``fuse``, ``decode``); what changes here is only how the trunk is
run, see :class:`InferenceTrunk`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from service.skeletons import Skeleton
from training.decoding import decode, fuse
from training.networks.base import normalise
from training.networks.hourglass import StackedHourglass
from training.targets import Radius, activate


class InferenceTrunk(nn.Module):
    """A trained hourglass with the arithmetic that only training needs folded away; weights of its own.

    * Pixel normalisation: the division goes into the first convolution, only the mean is subtracted (zero padding
      must keep meaning the mean). Two broadcasts over interleaved channels took 14 % of a run on a CPU.
    * Between stacks, features and maps go back through one 1x1 convolution each: three linear layers in a row are
      one. The maps of the earlier stacks are not computed at all.
    """

    mean: Tensor

    def __init__(self, network: StackedHourglass) -> None:
        super().__init__()
        self.heads, self.joints = len(network.heads), network.joints
        ends = normalise(torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 1, 1, 3)).double()
        scale = (ends[1] - ends[0]) / 255  # [3, 1, 1]
        self.register_buffer("mean", (-ends[0] / scale).float())
        first = network.stem[0]
        assert isinstance(first, nn.Conv2d)
        self.first = _convolution(first.weight.double() * scale, first.bias, like=first)
        self.stem = nn.Sequential(*list(network.stem)[1:])
        self.hourglasses, self.features = network.hourglasses, network.features
        merges = zip(network.merge_features, network.merge_outputs, network.outputs, strict=False)
        self.merges = nn.ModuleList(_merged(features, back, maps) for features, back, maps in merges)
        self.output = network.outputs[-1]

    def forward(self, crops: Tensor) -> Tensor:
        """uint8 crops [P, H, W, 3] to the last stack's raw maps [P, R, K, H/4, W/4]."""
        # Transposing bytes moves a quarter of what transposing floats would.
        x = self.stem(self.first(crops.permute(0, 3, 1, 2).float() - self.mean))
        features = x
        for stack, hourglass in enumerate(self.hourglasses):
            features = self.features[stack](hourglass(x))
            if stack < len(self.merges):
                x = x + self.merges[stack](features)
        raw: Tensor = self.output(features)
        return raw.unflatten(1, (self.heads, self.joints))


def _convolution(weight: Tensor, bias: Tensor | None, *, like: nn.Conv2d) -> nn.Conv2d:
    layer = nn.Conv2d(
        like.in_channels, like.out_channels, like.kernel_size, like.stride, like.padding,  # type: ignore[arg-type]
        bias=bias is not None,
    )  # fmt: skip
    with torch.no_grad():
        layer.weight.copy_(weight)
        if layer.bias is not None and bias is not None:
            layer.bias.copy_(bias)
    return layer


def _merged(features: nn.Module, back: nn.Module, maps: nn.Module) -> nn.Conv2d:
    """``features(x) + back(maps(x))`` of three 1x1 convolutions, as one."""
    assert isinstance(features, nn.Conv2d)
    assert isinstance(back, nn.Conv2d)
    assert isinstance(maps, nn.Conv2d)
    weights = [layer.weight.detach().double()[:, :, 0, 0] for layer in (features, back, maps)]
    biases = [_bias(layer) for layer in (features, back, maps)]
    weight = weights[0] + weights[1] @ weights[2]
    return _convolution(weight[:, :, None, None], biases[0] + biases[1] + weights[1] @ biases[2], like=features)


def _bias(layer: nn.Conv2d) -> Tensor:
    return torch.zeros(layer.out_channels).double() if layer.bias is None else layer.bias.detach().double()


class PoseHeads(nn.Module):
    """Crops uint8 [P, H, W, 3] to one non-negative map [P, K, H/4, W/4] for each radius."""

    def __init__(self, network: StackedHourglass, radii: Sequence[Radius]) -> None:
        super().__init__()
        self.trunk = InferenceTrunk(network)
        self.radii = tuple(radii)

    def forward(self, crops: Tensor) -> list[Tensor]:
        """R maps."""
        raw = self.trunk(crops)
        return [activate(raw[:, index], radius) for index, radius in enumerate(self.radii)]


class PoseFusion(nn.Module):
    """R maps and their weights to the joints of one skeleton."""

    def __init__(self, trunk: Skeleton, preset: Skeleton, stride: int) -> None:
        super().__init__()
        self.rows = preset.indices_in(trunk)
        self.stride = stride
        if min(self.rows) < 0:
            raise ValueError(f"{trunk.name} lacks joints of {preset.name}")

    def forward(self, heatmaps: list[Tensor], weights: Tensor) -> Tensor:
        """R times [P, K_trunk, h, w], weights [P, R] to keypoints [P, K, 3]: x, y in crop pixels, score."""
        rows = list(self.rows)
        # A leading run of joints (COCO's in the union) is a slice, not a gather.
        whole = rows == list(range(len(rows)))
        chosen = [maps[:, : len(rows)] if whole else maps[:, rows] for maps in heatmaps]
        return decode(fuse(chosen, weights), self.stride)


class PoseMirror(nn.Module):
    """Crops [P, H, W, 3] to their mirror images."""

    def forward(self, crops: Tensor) -> Tensor:
        """The same shape and type."""
        return crops.flip(2)


class FlipAverage(nn.Module):
    """Maps of crops and of their mirror images to the mean of both, the latter un-mirrored.

    Pixel-centre coordinates make the maps exact mirror images: nothing has to be shifted.
    """

    def __init__(self, skeleton: Skeleton) -> None:
        super().__init__()
        self.partners = list(skeleton.flip_permutation)

    def forward(self, straight: list[Tensor], mirrored: list[Tensor]) -> list[Tensor]:
        """R maps each [P, K, h, w] to R maps."""
        return [(a + b[:, self.partners].flip(-1)) / 2 for a, b in zip(straight, mirrored, strict=True)]
