"""What every pose network is to the rest of training: raw maps with their place in the supervision, and a config.

A network knows nothing of losses or targets. It says, for each map it returns, which stage and which level of the
stage drew it; supervision (coarse-to-fine kernels, hard joints, hard samples) is decided from that alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from training.recipe import Strict


@dataclass(frozen=True)
class Unit:
    """One supervised map's place: stages in the order of the forward pass, levels from coarse to fine."""

    stage: int
    stages: int
    level: int = 0
    levels: int = 1

    @property
    def last_stage(self) -> bool:
        """Whether it belongs to the last stage."""
        return self.stage + 1 == self.stages

    @property
    def finest(self) -> bool:
        """Whether it is the finest level of its stage."""
        return self.level + 1 == self.levels


class PoseNet(nn.Module, ABC):
    """Base of all pose networks.

    Attributes:
        stride: crop pixels for each heatmap cell; every map has it, coarse levels are resized in the network.
        joints: K.
        heads: names of the R supervision radii.
        units: the place of each map of :meth:`forward`; the last one is what is served.
        size: width, height of the only crops it takes; None for any of the config's ``multiple``.
    """

    stride = 4
    joints: int
    heads: tuple[str, ...]
    units: tuple[Unit, ...]
    size: tuple[int, int] | None = None

    def __init__(self, joints: int, heads: Sequence[str], units: Sequence[Unit]) -> None:
        super().__init__()
        self.joints, self.heads, self.units = joints, tuple(heads), tuple(units)

    @property
    def channels(self) -> int:
        """Channels of one raw map, R * K; :meth:`split` gives them their two axes."""
        return self.joints * len(self.heads)

    def split(self, raw: Tensor) -> Tensor:
        """[N, R * K, h, w] to [N, R, K, h, w]."""
        return raw.unflatten(1, (len(self.heads), self.joints))

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [N, 3, H, W] to one raw map [N, R, K, H/4, W/4] for each of ``units``."""


class NetworkConfig(Strict, ABC):
    """Hyper-parameters of one network. Sub-classes set ``name`` to a literal with that value as its default."""

    name: str

    @property
    def multiple(self) -> int:
        """Crop sides must be multiples of this."""
        return 32

    @property
    def size(self) -> tuple[int, int] | None:
        """Width, height of the only crops it takes; None for any multiple."""
        return None

    @property
    @abstractmethod
    def description(self) -> str:
        """What it is, in a phrase for the model card: network, paper, size."""

    @abstractmethod
    def build(self, joints: int, heads: Sequence[str]) -> PoseNet:
        """The network, freshly initialised (Gaussian unless the network's paper says otherwise)."""


Config = TypeVar("Config", bound=Strict)


def named_config(value: Any, known: Mapping[str, type[Config]], default: str, kind: str) -> Config:
    """A recipe's ``network`` section to the config of what it names.

    Args:
        value: the section, or a config already.
        known: configs by name.
        default: taken where the section names none.
        kind: of thing, for the errors.

    Raises:
        ValueError: an unknown name, or a field that does not fit (pydantic's ValidationError is one).
    """
    if isinstance(value, tuple(known.values())):
        return cast(Config, value)
    if not isinstance(value, dict):
        raise ValueError(f"a {kind} is a mapping with a name, this is {type(value).__name__}")
    name = value.get("name", default)
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(sorted(known))}")
    return known[name].model_validate(value)


def normalise(crops: Tensor) -> Tensor:
    """uint8 crops [N, H, W, 3] RGB to the network's input: float [N, 3, H, W], ImageNet mean and deviation."""
    mean = torch.tensor([123.675, 116.28, 103.53], device=crops.device)
    deviation = torch.tensor([58.395, 57.12, 57.375], device=crops.device)
    return ((crops.float() - mean) / deviation).permute(0, 3, 1, 2)
