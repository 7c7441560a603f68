"""What one training step sees of its people."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class PoseBatch:
    """P crops and what is known about their joints.

    Attributes:
        crops: uint8 [P, H, W, 3] RGB.
        points: float32 [P, K, 2], crop pixels; not looked at where ``labelled`` or ``present`` is 0.
        labelled: float32 [P, K]; how much the joint counts: 0 where nothing is known about it.
        present: float32 [P, K]; 0 where a labelled joint is known *not* to be there (its target is an empty map).
        areas: float32 [P]; the person's annotated area in square crop pixels, for OKS.
        indices: int64 [P]; the samples' numbers in their data set.
        visible: float32 [P, K]; 0 where a labelled joint is hidden (v = 1). None: nobody asks.
    """

    crops: Tensor
    points: Tensor
    labelled: Tensor
    present: Tensor
    areas: Tensor
    indices: Tensor
    visible: Tensor | None = None

    def __len__(self) -> int:
        return len(self.crops)

    def to(self, device: torch.device) -> PoseBatch:
        """The same batch on ``device``."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {name: part.to(device, non_blocking=True) for name, part in parts.items() if part is not None}
        return PoseBatch(**moved)
