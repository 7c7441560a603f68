"""How good a pose network is while it trains: OKS on people kept aside, with their true boxes.

A quick look on the crops that training uses; ``python -m training evaluate`` measures what is served.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from service.oks import pairwise_oks
from training.augment import NO_AUGMENTATION
from training.datasets.crops import CropSource
from training.datasets.patches import cut_patches
from training.datasets.union import PoseSample
from training.decoding import decode, fuse
from training.networks.base import PoseNet, normalise
from training.pose_recipe import PoseRecipe
from training.targets import activate

_BATCH = 64


@torch.no_grad()
def predict_crops(network: PoseNet, recipe: PoseRecipe, crops: Tensor) -> Tensor:
    """Fused and decoded joints of uint8 crops [P, H, W, 3]: [P, K, 3] x, y in crop pixels and score."""
    with torch.autocast(crops.device.type, torch.bfloat16, enabled=recipe.precision == "bf16-mixed"):
        raw = network(normalise(crops).contiguous(memory_format=torch.channels_last))[-1]
    heatmaps = [activate(raw[:, i], radius) for i, radius in enumerate(recipe.radii)]
    weights = torch.ones(len(crops), len(heatmaps), device=crops.device)
    return decode(fuse(heatmaps, weights), network.stride)


class HeldOut:
    """People kept aside, cut out once."""

    def __init__(self, recipe: PoseRecipe, held: Sequence[PoseSample], device: torch.device) -> None:
        self._recipe = recipe
        self._people = [sample for sample in held if not sample.empty]
        if self._people:
            patches = cut_patches(
                self._people,
                recipe.patch_size(NO_AUGMENTATION),
                threads=recipe.workers or None,
                cache=recipe.cache,
            )
            self._source = CropSource(
                self._people, patches, recipe.joints, recipe.size, NO_AUGMENTATION, recipe.seed, device
            )

    def oks(self, network: PoseNet) -> dict[str, float]:
        """Mean OKS for each data set: ``oks/<data set>``; people without a joint in their crop do not count."""
        recipe = self._recipe
        sums: dict[str, list[float]] = {}
        for start in range(0, len(self._people), _BATCH):
            indices = np.arange(start, min(start + _BATCH, len(self._people)))
            batch = self._source.batch(np.zeros_like(indices), indices)
            found = predict_crops(network, recipe, batch.crops).cpu().double().numpy()
            truth = batch.points.cpu().double().numpy()
            known = ((batch.labelled > 0) & (batch.present > 0)).cpu().numpy()
            for place, index in enumerate(indices.tolist()):
                mask = known[place]
                if not mask.any():
                    continue
                sigmas = [s for s, given in zip(recipe.joints.sigmas, mask, strict=True) if given]
                # All in crop pixels, the area too: OKS does not change with scale.
                answer, right = found[place, mask, :2], truth[place, mask]
                value = pairwise_oks(answer[None], right[None], float(batch.areas[place]), sigmas)[0, 0]
                sums.setdefault(f"oks/{self._people[index].dataset}", []).append(float(value))
        return {name: sum(values) / len(values) for name, values in sorted(sums.items())}


def held_out_oks(network: PoseNet, recipe: PoseRecipe, held: Sequence[PoseSample]) -> dict[str, float]:
    """Mean OKS over people with their true boxes, for each data set: ``oks/<data set>``."""
    return HeldOut(recipe, held, next(network.parameters()).device).oks(network)
