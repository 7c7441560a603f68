"""What the graphs of the pose models compute, as torch modules: heads, mirror, flip average, fusion.

The arithmetic is training's own (``activate``, ``fuse``, ``decode``); what changes is only how the trunk is run, see
:mod:`export.trunks`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from export.trunks import InferenceTrunk
from service.skeletons import Skeleton
from training.conventions import Convention, unmirrored
from training.decoding import Refinement, decode, fuse
from training.networks.base import PoseNet
from training.targets import Radius, activate


class PoseHeads(nn.Module):
    """Crops uint8 [P, H, W, 3] to one non-negative map [P, K, H/4, W/4] for each radius."""

    def __init__(self, network: PoseNet, radii: Sequence[Radius]) -> None:
        super().__init__()
        self.trunk = InferenceTrunk(network)
        self.radii = tuple(radii)

    def forward(self, crops: Tensor) -> list[Tensor]:
        """R maps."""
        raw = self.trunk(crops)
        return [activate(raw[:, index], radius) for index, radius in enumerate(self.radii)]


class PoseFusion(nn.Module):
    """R maps and their weights to the joints of one skeleton.

    Args:
        trunk: the skeleton of the maps.
        preset: the skeleton to answer.
        stride, refinement, sigma, convention: see :func:`training.decoding.decode`.
    """

    def __init__(
        self,
        trunk: Skeleton,
        preset: Skeleton,
        stride: int,
        refinement: Refinement = "taylor",
        *,
        sigma: float = 2.0,
        convention: Convention = "pixel_centre",
    ) -> None:
        super().__init__()
        self.rows = preset.indices_in(trunk)
        self.stride, self.sigma = stride, sigma
        self.refinement: Refinement = refinement
        self.convention: Convention = convention
        if min(self.rows) < 0:
            raise ValueError(f"{trunk.name} lacks joints of {preset.name}")

    def forward(self, heatmaps: list[Tensor], weights: Tensor) -> Tensor:
        """R times [P, K_trunk, h, w], weights [P, R] to keypoints [P, K, 3]: x, y in crop pixels, score."""
        rows = list(self.rows)
        # A leading run of joints (COCO's in the union) is a slice, not a gather.
        whole = rows == list(range(len(rows)))
        chosen = [maps[:, : len(rows)] if whole else maps[:, rows] for maps in heatmaps]
        fused = fuse(chosen, weights)
        return decode(fused, self.stride, self.refinement, sigma=self.sigma, convention=self.convention)


class PoseMirror(nn.Module):
    """Crops [P, H, W, 3] to their mirror images."""

    def forward(self, crops: Tensor) -> Tensor:
        """The same shape and type."""
        return crops.flip(2)


class FlipAverage(nn.Module):
    """Maps of crops and of their mirror images to the mean of both, the latter un-mirrored.

    Pixel-centre coordinates make the maps exact mirror images: nothing has to be shifted. The maps of networks of
    another convention are moved by a part of a cell, see :func:`training.conventions.flip_shift`.
    """

    def __init__(self, skeleton: Skeleton, shift: float = 0.0) -> None:
        super().__init__()
        self.partners, self.shift = skeleton.flip_permutation, shift

    def forward(self, straight: list[Tensor], mirrored: list[Tensor]) -> list[Tensor]:
        """R maps each [P, K, h, w] to R maps."""
        return [(a + unmirrored(b, self.partners, self.shift)) / 2 for a, b in zip(straight, mirrored, strict=True)]
