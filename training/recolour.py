"""How a batch of crops looks: colour, blur and erased rectangles, with torch on the device where the batch lies."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from training.augment import Looks

# A Gaussian is cut off at this many sigmas, as OpenCV does it for bytes.
_CUT = 3.0


def recolour(crops: Tensor, looks: Looks) -> Tensor:
    """Apply what was drawn.

    Args:
        crops: uint8 [P, H, W, 3] RGB; not changed.
        looks: what is done to each.

    Returns:
        uint8 [P, H, W, 3].
    """
    if looks.colour is not None:
        matrix = torch.from_numpy(looks.colour).to(crops.device)
        pixels = crops.flatten(1, 2).float()
        mixed = torch.baddbmm(matrix[:, None, :, 3], pixels, matrix[:, :, :3].transpose(1, 2))
        crops = _bytes(mixed).view_as(crops)
    blurred = looks.blur.nonzero()[0]
    erased = (looks.erased[:, 2] > looks.erased[:, 0]).nonzero()[0]
    if len(blurred) or len(erased):
        crops = crops.clone()
    if len(blurred):
        chosen = torch.from_numpy(blurred).to(crops.device)
        sigmas = torch.from_numpy(looks.blur[blurred]).to(crops.device)
        crops[chosen] = _blur(crops[chosen], sigmas, int(_CUT * float(looks.blur.max()) + 0.5))
    if len(erased):
        chosen = torch.from_numpy(erased).to(crops.device)
        box = torch.from_numpy(looks.erased[erased]).to(crops.device)[:, :, None]
        rows = torch.arange(crops.shape[1], device=crops.device)
        columns = torch.arange(crops.shape[2], device=crops.device)
        row = (rows >= box[:, 1]) & (rows < box[:, 3])
        column = (columns >= box[:, 0]) & (columns < box[:, 2])
        fill = torch.from_numpy(looks.fill[erased]).to(crops.device)[:, None, None]
        crops[chosen] = torch.where((row[:, :, None] & column[:, None, :]).unsqueeze(-1), fill, crops[chosen])
    return crops


def _bytes(values: Tensor) -> Tensor:
    return values.round_().clamp_(0, 255).to(torch.uint8)


def _blur(crops: Tensor, sigmas: Tensor, radius: int) -> Tensor:
    """Gaussian of each crop's own sigma, the border mirrored as OpenCV does."""
    offsets = torch.arange(-radius, radius + 1, device=crops.device)
    weights = torch.exp(-offsets.square() / (2 * sigmas[:, None].square()))
    # Each crop's own window, however wide the batch's largest is.
    weights = weights * (offsets.abs() <= (_CUT * sigmas[:, None] + 0.5).floor())
    kernel = (weights / weights.sum(1, keepdim=True)).repeat_interleave(3, 0)[:, None]
    planes = crops.permute(0, 3, 1, 2).float().flatten(0, 1)[None]
    groups = planes.shape[1]
    planes = functional.conv2d(functional.pad(planes, (radius,) * 4, mode="reflect"), kernel[..., None], groups=groups)
    planes = functional.conv2d(planes, kernel[:, :, None], groups=groups)
    return _bytes(planes[0].unflatten(0, (-1, 3)).permute(0, 2, 3, 1))
