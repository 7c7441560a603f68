"""State dicts that other projects published: read from their files, renamed, and held to a network of ours, every name.

A layout's module knows how a project names its tensors. What it cannot place is an error that lists the names: weights
that fit by half answer joints, only wrong ones.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from service.crops import PADDING
from training.conventions import Convention
from training.decoding import Refinement
from training.networks.base import NetworkConfig

Weights = dict[str, Tensor]
# A pattern for whole names, and the name of ours; a function where numbers are counted otherwise.
Rule = tuple[str, str | Callable[[re.Match[str]], str]]

# Where training code keeps the state dict, and what data-parallel training puts before each name.
_WRAPPERS = ("state_dict", "model", "best_state_dict")
_PARALLEL = "module."
_LISTED = 12
# What checkpoints hold beside tensors without being code: arrays of joint weights and sigmas, in their metadata.
# Files written with NumPy 1 name their functions otherwise than those of NumPy 2.
_ARRAYS: list[Any] = [np.dtype, np.ndarray, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "u1", "?"))]
_ARRAYS += [
    (getattr(import_module("numpy._core.multiarray"), function), f"numpy.{core}.multiarray.{function}")
    for function in ("_reconstruct", "scalar")
    for core in ("core", "_core")
]


class PretrainedError(ValueError):
    """Published weights that cannot be had or do not fit; names the file and what does not fit."""


@dataclass(frozen=True)
class Imported:
    """A published network in our terms.

    Attributes:
        layout: whose names the file had, in a phrase.
        network: config of the network, read from the tensors' shapes.
        weights: by our names.
        joints: K.
        convention: where a heatmap's cell lies in the crop.
        refinement: the sub-pixel step of the published code.
        sigma: of the Gaussians it was trained on, in cells.
        padding: factor on a box before it is cropped, as the published code tests.
        stride: crop pixels for each cell.
        size: width, height of the crops, where the tensors or their config say.
    """

    layout: str
    network: NetworkConfig
    weights: Weights
    joints: int
    convention: Convention
    refinement: Refinement
    sigma: float = 2.0
    padding: float = PADDING
    size: tuple[int, int] | None = None


def read_weights(path: Path) -> Weights:
    """Tensors by name, out of whatever dictionary the training code wrapped them in; nothing in the file is run.

    Raises:
        PretrainedError: no such file, not a torch file, or one without a state dict.
    """
    try:
        with torch.serialization.safe_globals(_ARRAYS):
            saved: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise PretrainedError(f"{path}: cannot be read as weights: {reason[0]}") from error
    if not isinstance(saved, Mapping):
        raise PretrainedError(f"{path}: holds a {type(saved).__name__}, not weights by name")
    for wrapper in _WRAPPERS:
        if isinstance(saved.get(wrapper), Mapping):
            saved = saved[wrapper]
            break
    weights = {str(name): value for name, value in saved.items() if isinstance(value, Tensor)}
    if not weights:
        raise PretrainedError(
            f"{path}: holds no tensors by name, but {', '.join(map(str, list(saved)[:5])) or 'nothing'}"
        )
    if all(name.startswith(_PARALLEL) for name in weights):
        weights = {name.removeprefix(_PARALLEL): value for name, value in weights.items()}
    return weights


def rename(weights: Mapping[str, Tensor], rules: Sequence[Rule]) -> Weights:
    """Our names for theirs; a name that no rule knows stays as it is, and :func:`fit` reports it as left over."""
    renamed: Weights = {}
    for name, value in weights.items():
        ours = name
        for pattern, replacement in rules:
            if match := re.fullmatch(pattern, name):
                ours = replacement(match) if callable(replacement) else match.expand(replacement)
                break
        renamed[name if ours in renamed else ours] = value  # two of one name: the second is left over
    return renamed


def fit(imported: Imported, where: str) -> Weights:
    """The imported weights, complete: every tensor of the network and no other, in its shape.

    Counters of batch normalisation, which files of old torch lack, become 0.

    Args:
        where: the file, for the error.

    Raises:
        PretrainedError: names missing, names left over, shapes that differ; each listed.
    """
    with torch.device("meta"):
        wanted = imported.network.build(imported.joints, ("medium",)).state_dict()
    given = dict(imported.weights)
    for name, value in wanted.items():
        if name.endswith("num_batches_tracked"):
            given.setdefault(name, torch.zeros((), dtype=value.dtype))
    faults = []
    if missing := [name for name in wanted if name not in given]:
        faults.append(f"lacks {_listed(missing)}")
    if left := [name for name in given if name not in wanted]:
        faults.append(f"has nothing to do with {_listed(left)}")
    shapes = [
        f"{name} ({list(given[name].shape)}, {list(value.shape)} expected)"
        for name, value in wanted.items()
        if name in given and given[name].shape != value.shape
    ]
    if shapes:
        faults.append(f"has other shapes: {_listed(shapes)}")
    if faults:
        raise PretrainedError(f"{where}: not whole weights of {imported.layout}: {'; '.join(faults)}")
    return {name: given[name].to(value.dtype).contiguous() for name, value in wanted.items()}


def size_of(weights: Mapping[str, Tensor], name: str, axis: int, layout: str) -> int:
    """One axis of a tensor that says what the network is. Raises PretrainedError when there is no such tensor."""
    if name not in weights:
        raise PretrainedError(f"not weights of {layout}: no tensor {name} among {_listed(list(weights))}")
    return int(weights[name].shape[axis])


def count(weights: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers stand in the pattern's first group; they must be 0 to n - 1 to be counted."""
    numbers = {int(match[1]) for name in weights if (match := re.match(pattern, name))}
    return next((n for n in range(len(numbers)) if n not in numbers), len(numbers))


def reverse_colours(weights: Weights, name: str) -> None:
    """Let the convolution that was trained on blue, green, red see red, green, blue; in place."""
    if name in weights:
        weights[name] = weights[name].flip(1)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_LISTED])
    return f"{len(names)} names: {shown}" + (", ..." if len(names) > _LISTED else "")
