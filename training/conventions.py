"""Where a heatmap's cell lies in the crop: our own convention, and those that published weights were trained with.

A joint at crop pixel x was drawn at heatmap cell ``h = x / stride + b``. Mirroring the crop and mirroring the map back
moves the peak by ``-(1 - 1 / stride) - 2 b`` cells, which is nothing only for our own convention:

| convention | networks | drawn at | b | moved by, stride 4 |
|---|---|---|---|---|
| ``pixel_centre`` | ours | (x + 0.5) / 4 - 0.5 | -0.375 | 0 |
| ``msra`` | SimpleBaseline, HRNet | round(x / 4) | 0 | -0.75 |
| ``megvii`` | CPN, MSPN, RSN | floor(x / 4) | -0.5 | +0.25 |
| ``udp`` | ViTPose and others trained with UDP | x (w - 1) / (W - 1) | | 0 |

The last one (Huang et al. 2020) lays the first and the last cell on the first and the last pixel of the crop, of which
the map has w and the crop W = 4 w along an axis: a cell is a little more than four pixels wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from torch.nn import functional

from service.crops import crop_to_heatmap

Convention = Literal["pixel_centre", "msra", "megvii", "udp"]
OURS: Convention = "pixel_centre"


def cell_offset(convention: Convention, stride: int) -> float:
    """b: the cell at which crop pixel 0 is drawn (on average, where the place is rounded)."""
    if convention in ("msra", "udp"):
        return 0.0
    if convention == "megvii":
        return -0.5
    return float(crop_to_heatmap(0.0, stride))


def cells_to_crop(cells: Tensor, count: int, stride: int, convention: Convention) -> Tensor:
    """Places on a map, in cells along one axis, as crop pixels.

    Args:
        cells: any shape, fractions allowed.
        count: cells of the map along that axis.
        stride: crop pixels for each cell.
        convention: of the network that drew the map.
    """
    scale = (count * stride - 1) / (count - 1) if convention == "udp" else float(stride)
    return (cells - cell_offset(convention, stride)) * scale


def flip_shift(convention: Convention, stride: int) -> float:
    """Cells by which a mirrored crop's map, mirrored back, has to move to the right to lie on the straight one's."""
    if convention == "udp":
        return 0.0
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
