"""ViTPose (Xu et al. 2022, arXiv:2204.12484): a plain vision transformer and a light decoder, run by ``transformers``.

For published weights: our recipes do not train it from scratch, which takes a masked auto-encoder's weights to start
from. ``transformers`` is imported when a network is built and not before; serving needs the exported graph alone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor

from training.networks.base import NetworkConfig, PoseNet, Unit

MISSING = "ViTPose is run by the package transformers, which .venv/vitpose has: python3 scripts/environment.py vitpose"


class ViTPose(PoseNet):
    """One map at stride 4 from crops of one size.

    Args:
        joints: K.
        heads: names of the R supervision radii.
        architecture: fields of ``transformers.VitPoseConfig``, one expert.
        size: width, height of the crops.
    """

    def __init__(self, joints: int, heads: Sequence[str], architecture: dict[str, Any], size: tuple[int, int]) -> None:
        super().__init__(joints, heads, [Unit(0, 1)])
        try:
            from transformers import VitPoseConfig, VitPoseForPoseEstimation
        except ImportError as error:
            raise ValueError(MISSING) from error
        config = VitPoseConfig(**copy.deepcopy(architecture))
        config.num_labels = self.channels
        config._attn_implementation = "eager"
        self.size = size
        self.model = VitPoseForPoseEstimation(config)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [N, 3, H, W] to one raw map [N, R, K, H/4, W/4]."""
        return [self.split(self.model(images).heatmaps)]


class ViTPoseConfig(NetworkConfig):
    """The architecture as ``transformers`` describes it, with the sizes that decide what fits beside it."""

    name: Literal["vitpose"] = "vitpose"
    architecture: dict[str, Any] = Field(description="fields of transformers' VitPoseConfig")
    width: int = Field(192, description="of the crop, which its position embedding fixes")
    height: int = Field(256, description="of the crop")

    @model_validator(mode="after")
    def _check(self) -> ViTPoseConfig:
        backbone = self.architecture.get("backbone_config")
        if not isinstance(backbone, dict):
            raise ValueError("architecture: no backbone_config")
        given = backbone.get("image_size")
        if list(given or ()) != [self.height, self.width]:
            raise ValueError(f"architecture: image_size {given}, not height and width {[self.height, self.width]}")
        if backbone.get("num_experts", 1) != 1:
            raise ValueError("architecture: several experts; an import keeps the one of COCO")
        patch = list(backbone.get("patch_size", (16, 16)))
        # The classic decoder doubles its resolution twice.
        enlarged = self.architecture.get("scale_factor", 4) if self.architecture.get("use_simple_decoder", True) else 4
        if [side // enlarged for side in patch] != [PoseNet.stride] * 2:
            raise ValueError(f"architecture: patches of {patch} enlarged {enlarged} times; maps need a stride of 4")
        return self

    @property
    def multiple(self) -> int:
        """Crop sides must be multiples of this."""
        return 16

    @property
    def size(self) -> tuple[int, int]:
        """Width, height of the only crops it takes."""
        return self.width, self.height

    @property
    def description(self) -> str:
        """For the model card."""
        backbone = self.architecture["backbone_config"]
        decoder = "simple" if self.architecture.get("use_simple_decoder", True) else "classic"
        return (
            f"ViTPose (Xu et al. 2022), {backbone.get('num_hidden_layers', 12)} layers of "
            f"{backbone.get('hidden_size', 768)} channels, {decoder} decoder"
        )

    def build(self, joints: int, heads: Sequence[str]) -> ViTPose:
        """Freshly initialised. Raises ValueError where ``transformers`` is not installed."""
        return ViTPose(joints, heads, self.architecture, self.size)
