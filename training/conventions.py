"""Where a heatmap's cell lies in the crop: our own convention, and those that published weights were trained with.

A joint at crop pixel x was drawn at heatmap cell ``h = x / stride + b``. Mirroring the crop and mirroring the map back
moves the peak by ``-(1 - 1 / stride) - 2 b`` cells, which is nothing only for our own convention:

| convention | networks | drawn at | b | moved by, stride 4 |
|---|---|---|---|---|
| ``pixel_centre`` | ours | (x + 0.5) / 4 - 0.5 | -0.375 | 0 |
| ``msra`` | SimpleBaseline, HRNet | round(x / 4) | 0 | -0.75 |
| ``megvii`` | CPN, MSPN, RSN | floor(x / 4) | -0.5 | +0.25 |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from torch.nn import functional

from service.crops import crop_to_heatmap

Convention = Literal["pixel_centre", "msra", "megvii"]


def cell_offset(convention: Convention, stride: int) -> float:
    """b: the cell at which crop pixel 0 is drawn (on average, where the place is rounded)."""
    if convention == "msra":
        return 0.0
    if convention == "megvii":
        return -0.5
    return float(crop_to_heatmap(0.0, stride))


def flip_shift(convention: Convention, stride: int) -> float:
    """Cells by which a mirrored crop's map, mirrored back, has to move to the right to lie on the straight one's."""
    return 1 - 1 / stride + 2 * cell_offset(convention, stride)


def unmirrored(maps: Tensor, partners: Sequence[int], shift: float = 0.0) -> Tensor:
    """Maps of mirrored crops as maps of the crops: mirrored back, joints renamed, moved by linear interpolation.

    Args:
        maps: [P, K, h, w].
        partners: the joint that takes each one's place in the mirror.
        shift: cells to the right, see :func:`flip_shift`; cells that come from outside repeat the border.
    """
    back = maps[:, list(partners)].flip(-1)
    if abs(shift) < 1e-9:
        return back
    whole = math.floor(shift)
    part, width = shift - whole, back.shape[-1]
    # Column i is (1 - part) of column i - whole and part of column i - whole - 1.
    room = abs(whole) + 1
    padded = functional.pad(back, (room, room, 0, 0), mode="replicate")
    left = padded[..., room - whole - 1 : room - whole - 1 + width]
    right = padded[..., room - whole : room - whole + width]
    return left * part + right * (1 - part)
