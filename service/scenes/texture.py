"""Smooth random textures: folds in cloth, stains on walls, grass."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Grey = npt.NDArray[np.uint8]
_SIDE = 1024


def _make_texture(seed: int, octaves: tuple[int, ...], contrast: float, weight: float = 0.5) -> Grey:
    """A tile of noise around 128, uint8 [1024, 1024]; ``octaves`` are the grid sizes that are added up."""
    rng = np.random.default_rng(seed)
    total = np.zeros((_SIDE, _SIDE), np.float32)
    for cells in octaves:
        grid = rng.standard_normal((cells, cells)).astype(np.float32)
        total += cv2.resize(grid, (_SIDE, _SIDE), interpolation=cv2.INTER_CUBIC) / cells**weight
    total = total / total.std()
    return np.clip(128 + contrast * total, 0, 255).astype(np.uint8)


# Folds: a few broad waves. Made once for the process, the same on every machine.
TEXTURE = _make_texture(11, (24, 48, 96), 7.0)
ROUGH = _make_texture(12, (6, 32, 128, 512), 8.0, 0.25)


def texture_crop(texture: Grey, shape: tuple[int, int], rng: np.random.Generator, zoom: float = 1.0) -> Grey:
    """A random piece of a texture, uint8 [h, w], magnified by ``zoom``."""
    height, width = (min(_SIDE, max(2, int(np.ceil(s / zoom)))) for s in shape)
    y, x = rng.integers(0, _SIDE - height + 1), rng.integers(0, _SIDE - width + 1)
    piece = texture[y : y + height, x : x + width]
    grey: Grey = cv2.resize(piece, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR).reshape(shape).astype(np.uint8)
    return grey
