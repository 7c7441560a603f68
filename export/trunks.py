"""Trained pose networks in the form that is served: bytes in, the last map out, weights of their own.

What only training needs goes away. Any network of the registry works; the hourglass gets one folding more.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from training.networks.base import PoseNet, normalise
from training.networks.hourglass import StackedHourglass

# A multiple of every network's ``multiple``: crops on which a folded network is held to the trained one.
_PROBE = 128
# Of the largest value of the maps: float32 rounding of a deep network is a hundredth of this.
_TOLERANCE = 1e-3


class InferenceTrunk(nn.Module):
    """A trained network from bytes to its last raw map.

    * Pixel normalisation: the division goes into the first convolution, only the mean is subtracted (zero padding
      must keep meaning the mean). Two broadcasts over interleaved channels took 14 % of a run on a CPU. A network
      where that cannot be done, because something else than one convolution sees the image, normalises in the graph.
    * Maps that only supervision asks for are not computed: the exporter drops what leads to no output.
    """

    def __init__(self, network: PoseNet) -> None:
        super().__init__()
        trained = copy.deepcopy(network).eval()
        # A copy's parameters would still be trained, and batch norm would still count.
        trained.requires_grad_(False)
        folded = fold_normalisation(trained)
        self.folded = folded is not None
        self.pixels: nn.Module = _Centre() if folded is not None else _Normalise()
        served = folded if folded is not None else trained
        self.network: nn.Module = _MergedStacks(served) if isinstance(served, StackedHourglass) else _LastMap(served)

    def forward(self, crops: Tensor) -> Tensor:
        """uint8 crops [P, H, W, 3] to raw maps [P, R, K, H/4, W/4]."""
        raw: Tensor = self.network(self.pixels(crops))
        return raw


@torch.no_grad()
def fold_normalisation(network: PoseNet) -> PoseNet | None:
    """A copy that takes pixels less their mean where ``network`` takes normalised images, or None.

    None where the image goes into something else than one convolution, or where the copy draws other maps: both are
    found by running the network, whatever its modules are called.
    """
    generator = torch.Generator().manual_seed(0)
    width, height = network.size or (_PROBE, _PROBE)
    crops = torch.randint(0, 256, (1, height, width, 3), generator=generator, dtype=torch.uint8)
    images = normalise(crops)
    readers: list[str] = []

    def note(name: str) -> object:
        def see(_: nn.Module, inputs: tuple[object, ...]) -> None:
            if any(isinstance(i, Tensor) and i.shape == images.shape and torch.equal(i, images) for i in inputs):
                readers.append(name)

        return see

    leaves = {name: module for name, module in network.named_modules() if not list(module.children())}
    handles = [module.register_forward_pre_hook(note(name)) for name, module in leaves.items()]
    try:
        expected = network(images)[-1]
    finally:
        for handle in handles:
            handle.remove()
    if len(readers) != 1 or not isinstance(leaves[readers[0]], nn.Conv2d):
        return None
    folded = copy.deepcopy(network)
    first = folded.get_submodule(readers[0])
    assert isinstance(first, nn.Conv2d)
    scale, _ = _affine()
    first.weight.copy_(first.weight.double() * scale)
    found = folded(_Centre()(crops))[-1]
    close = (found - expected).abs().max() <= _TOLERANCE * expected.abs().max()
    return folded if close else None


def _affine() -> tuple[Tensor, Tensor]:
    """Factor [3, 1, 1] and mean [3, 1, 1] of ``normalise``, which is (x - mean) * factor; float64."""
    ends = normalise(torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 1, 1, 3)).double()
    scale = (ends[1] - ends[0]) / 255
    return scale, -ends[0] / scale


class _Centre(nn.Module):
    """uint8 [P, H, W, 3] to float [P, 3, H, W] less the mean."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", _affine()[1].float())

    def forward(self, crops: Tensor) -> Tensor:
        # Transposing bytes moves a quarter of what transposing floats would.
        return crops.permute(0, 3, 1, 2).float() - self.mean


class _Normalise(nn.Module):
    """uint8 [P, H, W, 3] to normalised images [P, 3, H, W]."""

    scale: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        scale, mean = _affine()
        self.register_buffer("scale", scale.float())
        self.register_buffer("mean", mean.float())

    def forward(self, crops: Tensor) -> Tensor:
        return (crops.permute(0, 3, 1, 2).float() - self.mean) * self.scale


class _LastMap(nn.Module):
    """The last of a network's maps."""

    def __init__(self, network: PoseNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        maps: list[Tensor] = self.network(images)
        return maps[-1]


class _MergedStacks(nn.Module):
    """An hourglass network's last map, with one 1x1 convolution between stacks instead of three.

    Features and maps go back into the trunk linearly, so the maps of the earlier stacks need not be computed at all.
    """

    def __init__(self, network: StackedHourglass) -> None:
        super().__init__()
        self.heads, self.joints = len(network.heads), network.joints
        self.stem, self.hourglasses, self.features = network.stem, network.hourglasses, network.features
        merges = zip(network.merge_features, network.merge_outputs, network.outputs, strict=False)
        self.merges = nn.ModuleList(_merged(features, back, maps) for features, back, maps in merges)
        self.output = network.outputs[-1]

    def forward(self, images: Tensor) -> Tensor:
        x = features = self.stem(images)
        for stack, hourglass in enumerate(self.hourglasses):
            features = self.features[stack](hourglass(x))
            if stack < len(self.merges):
                x = x + self.merges[stack](features)
        raw: Tensor = self.output(features)
        return raw.unflatten(1, (self.heads, self.joints))


@torch.no_grad()
def _merged(features: nn.Module, back: nn.Module, maps: nn.Module) -> nn.Conv2d:
    """``features(x) + back(maps(x))`` of three 1x1 convolutions, as one."""
    assert isinstance(features, nn.Conv2d)
    assert isinstance(back, nn.Conv2d)
    assert isinstance(maps, nn.Conv2d)
    weights = [layer.weight.double()[:, :, 0, 0] for layer in (features, back, maps)]
    biases = [_bias(layer) for layer in (features, back, maps)]
    merged = nn.Conv2d(features.in_channels, features.out_channels, 1)
    assert merged.bias is not None
    merged.weight.copy_((weights[0] + weights[1] @ weights[2])[:, :, None, None])
    merged.bias.copy_(biases[0] + biases[1] + weights[1] @ biases[2])
    return merged


def _bias(layer: nn.Conv2d) -> Tensor:
    return torch.zeros(layer.out_channels).double() if layer.bias is None else layer.bias.double()
