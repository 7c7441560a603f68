"""Where a network's weights start: Gaussian, another pose checkpoint, ImageNet weights for its backbones."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class InitialisationError(ValueError):
    """Weights that cannot be started from; names file and reason."""


def gaussian_(network: nn.Module, deviation: float) -> None:
    """Draw every convolution's weights from a Gaussian, in place; biases and normalisation layers stay.

    Args:
        network: built by its config, which draws what its paper says (Gaussian in all of them).
        deviation: in units of ``sqrt(1 / fan_in)``; He et al. 2015 take 1.41.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=deviation / math.sqrt(module.weight[0].numel()))
        elif isinstance(module, nn.ConvTranspose2d):
            # [in, out, ...]; along each axis an output sees kernel / stride inputs.
            inputs = module.weight.shape[0] * module.weight[0, 0].numel() / math.prod(module.stride)
            nn.init.normal_(module.weight, std=deviation / math.sqrt(inputs))


def load_matching(network: nn.Module, path: Path) -> tuple[int, int]:
    """Start from a checkpoint (``model.pt`` or ``last.pt``): tensors are matched by name and shape.

    Returns:
        how many tensors fitted, and how many the network has.

    Raises:
        InitialisationError: not a checkpoint, or nothing in it fits.
    """
    weights = _read_checkpoint(path)
    own = network.state_dict()
    fitting = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
    if not fitting:
        raise InitialisationError(f"{path}: no tensor fits the network")
    network.load_state_dict(fitting, strict=False)
    return len(fitting), len(own)


def load_wider(network: nn.Module, path: Path) -> tuple[int, int]:
    """Start from a checkpoint of the same network with fewer channels, which computes the same (Chen et al. 2016).

    Each channel of the narrow network is there once or more; what reads it gets its weights in random parts, another
    split for each output, or the copies would learn the same for ever. Exact for networks that add features
    (residual ones); those that concatenate channels of several sources come out changed.

    Returns:
        how many tensors the checkpoint gave, and how many the network has.

    Raises:
        InitialisationError: not a checkpoint; another network, one with more channels, or with grouped convolutions.
    """
    weights = _read_checkpoint(path)
    own = network.state_dict()
    if missing := sorted(own.keys() - weights.keys()):
        raise InitialisationError(f"{path}: lacks {len(missing)} of {len(own)} tensors, {missing[0]} for one")
    reads = dict(_read_axes(network, path))
    wide = {name: _widen(name, weights[name], tensor.shape, reads.get(name), path) for name, tensor in own.items()}
    network.load_state_dict(wide)
    return len(wide), len(own)


def _read_axes(network: nn.Module, path: Path) -> Iterator[tuple[str, int]]:
    """Names of the weights that read channels, and along which axis."""
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            if module.groups != 1:
                raise InitialisationError(f"{path}: {name} has {module.groups} groups: it cannot be widened")
            yield f"{name}.weight", 0 if isinstance(module, nn.ConvTranspose2d) else 1


def _widen(name: str, narrow: Tensor, shape: torch.Size, read: int | None, path: Path) -> Tensor:
    same_form = narrow.ndim == len(shape) and narrow.shape[2:] == shape[2:]
    if not same_form or any(had > wanted for had, wanted in zip(narrow.shape, shape, strict=True)):
        raise InitialisationError(f"{path}: {name} is {list(narrow.shape)}, which cannot become {list(shape)}")
    wide = narrow
    # Kernels keep their sides; scalars (the batches that a normalisation has seen) have no axis.
    for axis, wanted in enumerate(shape[:2]):
        wide = wide.index_select(axis, torch.arange(wanted) % narrow.shape[axis])
    if read is None or narrow.shape[read] == shape[read]:
        return wide
    # Parts of one: random for each pair of channels, the same for all places of the kernel.
    parts = torch.rand(shape[:2]) + 0.5
    original = torch.arange(shape[read]) % narrow.shape[read]
    size = [shape[0], shape[1]]
    size[read] = narrow.shape[read]
    sums = torch.zeros(size).index_add_(read, original, parts)
    return wide * (parts / sums.index_select(read, original))[..., None, None]


def load_backbones(network: nn.Module, path: Path) -> tuple[int, int]:
    """Give every backbone of the network the same ImageNet weights, as MSPN does for each of its stages.

    A network lists them as ``backbones``: modules whose parameters have torchvision's names (``conv1``, ``bn1``,
    ``layer1.0.conv1`` ...). Weights that a backbone lacks are left out (``fc``; the stem of a later stage).

    Returns:
        how many of the backbones' tensors were loaded, and how many they have.

    Raises:
        InitialisationError: a network without backbones, a file that is no state dict, weights of another depth.
    """
    backbones = getattr(network, "backbones", None)
    if not backbones:
        raise InitialisationError(f"init_backbone: {type(network).__name__} has no backbone that takes weights")
    saved = _read(path)
    weights: Mapping[str, Tensor] = saved.get("state_dict", saved)
    loaded = total = 0
    for number, backbone in enumerate(backbones):
        own = backbone.state_dict()
        wrong = [k for k, v in own.items() if k in weights and weights[k].shape != v.shape]
        missing = [k for k in own if k not in weights and not k.endswith("num_batches_tracked")]
        if wrong:
            raise InitialisationError(
                f"{path}: {wrong[0]} is {list(weights[wrong[0]].shape)}, backbone {number} needs "
                f"{list(own[wrong[0]].shape)}: weights of another ResNet"
            )
        fitting = {k: v for k, v in weights.items() if k in own}
        if len(missing) > len(own) / 2:
            raise InitialisationError(f"{path}: lacks {len(missing)} of {len(own)} tensors, {missing[0]} for one")
        backbone.load_state_dict(fitting, strict=False)
        loaded, total = loaded + len(fitting), total + len(own)
    return loaded, total


def _read_checkpoint(path: Path) -> Mapping[str, Tensor]:
    saved = _read(path)
    weights = saved.get("weights", saved.get("ema"))
    if not isinstance(weights, Mapping):
        raise InitialisationError(f"{path}: no pose checkpoint, it holds {', '.join(map(str, list(saved)[:5]))}")
    return weights


def _read(path: Path) -> dict[str, Any]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise InitialisationError(f"{path}: cannot be read as weights: {error}") from error
    if not isinstance(saved, dict):
        raise InitialisationError(f"{path}: holds a {type(saved).__name__}, not weights by name")
    return saved
