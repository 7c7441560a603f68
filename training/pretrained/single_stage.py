"""HRNet and the simple baseline as their authors' code and mmpose name them.

Both draw a joint at ``round(x / 4)`` with peak 1 and step a quarter cell. HRNet's authors and mmpose read pictures as
red, green, blue; the simple baseline's authors (and HRNet's code, for its ResNets) as blue, green, red, each channel
less the mean and over the deviation of the channel that would stand there in red, green, blue.
"""

from __future__ import annotations

from typing import get_args

import torch

from training.networks.base import normalise
from training.networks.hrnet import HRNetConfig
from training.networks.resnet import ResNetName
from training.networks.simple_baseline import SimpleBaselineConfig
from training.pretrained.weights import (
    Imported,
    PretrainedError,
    Rule,
    Weights,
    count,
    rename,
    reverse_colours,
    size_of,
)

_MMPOSE: tuple[Rule, ...] = (
    (r"backbone\.(.*)", r"\1"),
    (r"(?:keypoint_)?head\.((?:final_layer|deconv_layers)\..*)", r"\1"),
)
_BASELINE: tuple[Rule, ...] = (
    (r"((?:conv1|bn1|layer\d)\..*)", r"backbone.\1"),
    (r"deconv_layers\.(.*)", r"deconvs.\1"),
    (r"final_layer\.(.*)", r"output.\1"),
)
_DEPTHS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}


def hrnet(weights: Weights) -> Imported:
    """HRNet by its authors' names, which are ours, or mmpose's."""
    theirs = from_mmpose(weights)
    layout = f"HRNet as {'mmpose names' if theirs else 'its authors name'} it"
    weights = rename(weights, _MMPOSE) if theirs else weights
    modules = tuple(count(weights, rf"stage{stage}\.(\d+)\.") for stage in (2, 3, 4))
    blocks = count(weights, r"stage2\.0\.branches\.0\.(\d+)\.")
    if not blocks or 0 in modules:
        raise PretrainedError(f"not weights of {layout}: no tensors stage2.0.branches.0.* to stage4.0.*")
    return Imported(
        layout=layout,
        network=HRNetConfig(
            width=size_of(weights, "stage2.0.branches.0.0.conv1.weight", 0, layout),
            stem=size_of(weights, "conv1.weight", 0, layout),
            blocks=blocks,
            modules=modules,
        ),
        weights=weights,
        joints=size_of(weights, "final_layer.weight", 0, layout),
        convention="msra",
        refinement="quarter",
    )


def simple_baseline(weights: Weights) -> Imported:
    """The simple baseline by its authors' names or mmpose's."""
    theirs = from_mmpose(weights)
    layout = f"the simple baseline as {'mmpose names' if theirs else 'its authors name'} it"
    if theirs:
        weights = rename(weights, _MMPOSE)
    layers = tuple(count(weights, rf"layer{level}\.(\d+)\.") for level in (1, 2, 3, 4))
    name = _DEPTHS.get(("layer1.0.conv3.weight" in weights, layers))
    if name not in get_args(ResNetName):
        raise PretrainedError(f"not weights of {layout}: layer1 to layer4 have {layers} blocks, as no ResNet of ours")
    weights = rename(weights, _BASELINE)
    network = SimpleBaselineConfig(
        backbone=name,
        deconv_channels=size_of(weights, "output.weight", 1, layout),
        reversed_means=not theirs,
    )
    if not theirs:
        reverse_colours(weights, "backbone.conv1.weight")
        _reverse_deviations(weights, "backbone.conv1.weight")
    return Imported(
        layout=layout,
        network=network,
        weights=weights,
        joints=size_of(weights, "output.weight", 0, layout),
        convention="msra",
        refinement="quarter",
    )


def from_mmpose(weights: Weights) -> bool:
    """Whether names begin as mmpose's do."""
    return any(name.startswith("backbone.") for name in weights)


def _reverse_deviations(weights: Weights, name: str) -> None:
    """Trained on channels over the deviations in reverse, the weights take channels over their own; in place."""
    if name in weights and weights[name].shape[1] == 3:
        ends = normalise(torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 1, 1, 3)).double()
        scale = (ends[1] - ends[0]) / 255  # 1 / deviation of red, green, blue
        weights[name] = (weights[name].double() * (scale.flip(0) / scale)).to(weights[name].dtype)
