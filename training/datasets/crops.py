"""Augmented crops of people in batches: patches in memory, one affine look-up, colours; on the device where it fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from service.crops import crop_people, transform_points
from service.skeletons import Skeleton
from training.augment import NUMBERS, Augmentation, compose, draw_geometry, draw_looks, mirror_names
from training.batches import PoseBatch
from training.datasets.patches import Patches
from training.datasets.union import PoseSample
from training.draws import uniforms
from training.recolour import recolour

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


class Sampler(Protocol):
    """Looks crops up in patches."""

    def __call__(self, indices: Numbers, matrices: Floats, size: tuple[int, int]) -> Tensor:
        """uint8 [P, H, W, 3] of patches ``indices`` by affines [P, 2, 3] patch points to crop points."""
        ...


class HostSampler:
    """With the function that serving crops with."""

    def __init__(self, patches: Patches) -> None:
        self.patches = patches

    def __call__(self, indices: Numbers, matrices: Floats, size: tuple[int, int]) -> Tensor:
        """On the CPU."""
        crops = np.empty((len(indices), size[1], size[0], 3), np.uint8)
        for place, (index, matrix) in enumerate(zip(indices.tolist(), matrices, strict=True)):
            crops[place] = crop_people(self.patches[index], matrix[None], size)[0]
        return torch.from_numpy(crops)


class DeviceSampler:
    """With one batched look-up, patches lying on the device: what ``crop_people`` does, for the whole batch at once.

    Bilinear between pixel centres, black outside. Patches are about as fine as crops, so no halved pictures are
    needed (``crop_people`` begins with them at a shrink of 2).
    """

    def __init__(self, patches: Patches, device: torch.device) -> None:
        self._pixels = torch.empty(len(patches.pixels), dtype=torch.uint8, device=device)
        # In parts: the host's array may be a mapped file larger than its memory.
        for start in range(0, len(patches.pixels), 1 << 28):
            part = np.array(patches.pixels[start : start + (1 << 28)])
            self._pixels[start : start + len(part)] = torch.from_numpy(part).to(device)
        self._starts = torch.from_numpy(patches.starts).to(device)
        self._sizes = torch.from_numpy(patches.sizes).to(device)

    def __call__(self, indices: Numbers, matrices: Floats, size: tuple[int, int]) -> Tensor:
        """On the patches' device."""
        device = self._pixels.device
        width, height = size
        linear = np.linalg.inv(matrices[:, :, :2])
        offset = -(linear @ matrices[:, :, 2:])
        # Coordinates are below 2,000: float32 keeps a ten-thousandth of a pixel.
        back = torch.from_numpy(np.concatenate([linear, offset], axis=2)).float().to(device)[:, :, :, None, None]
        columns = torch.arange(width, device=device, dtype=torch.float32)[None, None, :]
        rows = torch.arange(height, device=device, dtype=torch.float32)[None, :, None]
        x = back[:, 0, 0] * columns + back[:, 0, 1] * rows + back[:, 0, 2]
        y = back[:, 1, 0] * columns + back[:, 1, 1] * rows + back[:, 1, 2]
        chosen = torch.from_numpy(indices).to(device)
        start = self._starts[chosen][:, None, None]
        wide, high = self._sizes[chosen].unbind(1)
        wide, high = wide[:, None, None], high[:, None, None]
        left, top = x.floor(), y.floor()
        right_share, low_share = x - left, y - top
        left, top = left.long(), top.long()
        total = torch.zeros((len(indices), height, width, 3), device=device)
        for down in (0, 1):
            for right in (0, 1):
                column, row = left + right, top + down
                inside = (column >= 0) & (column < wide) & (row >= 0) & (row < high)
                share = (right_share if right else 1 - right_share) * (low_share if down else 1 - low_share)
                first = start + 3 * (row.clamp_min(0).minimum(high - 1) * wide + column.clamp_min(0).minimum(wide - 1))
                share = torch.where(inside, share, 0.0)
                for channel in range(3):
                    total[..., channel].addcmul_(share, self._pixels[first + channel])
        return total.round_().clamp_(0, 255).to(torch.uint8)


class CropSource:
    """Batches of augmented crops; each crop depends on ``(seed, draw, index)`` alone.

    Args:
        samples: N people.
        patches: their N patches.
        skeleton: of their K joints.
        size: width, height of the crops.
        strength: of the augmentation.
        seed: of the run.
        device: where batches go.
        resident: whether the patches are copied to that device, and crops made there.
    """

    def __init__(
        self,
        samples: Sequence[PoseSample],
        patches: Patches,
        skeleton: Skeleton,
        size: tuple[int, int],
        strength: Augmentation,
        seed: int,
        device: torch.device,
        *,
        resident: bool = False,
    ) -> None:
        self.skeleton, self.size, self.strength, self.seed, self.device = skeleton, size, strength, seed, device
        self._patches = patches
        self._boxes = np.stack([s.box for s in samples])
        self._keypoints = np.stack([s.keypoints for s in samples])
        self._areas = np.array([max(s.area, 1.0) for s in samples])
        self._empty = np.array([s.empty for s in samples])
        self._weights = np.array([s.weight for s in samples])
        # Nobody is in an empty crop: no half of a body to cut to.
        self._keypoints[self._empty, :, 2] = 0
        self._sampler: Sampler = DeviceSampler(patches, device) if resident else HostSampler(patches)

    def __len__(self) -> int:
        return len(self._boxes)

    def batch(self, draws: Numbers, indices: Numbers, size: tuple[int, int] | None = None) -> PoseBatch:
        """The crops of people ``indices`` [P] at places ``draws`` [P] of the run, on the device.

        ``size``: width, height of these crops where they are not those of the source.
        """
        size = size or self.size
        numbers = uniforms(self.seed, draws, indices, NUMBERS)
        joints = self._keypoints[indices]
        to_crop, mirrored = draw_geometry(self._boxes[indices], joints, size, self.skeleton, self.strength, numbers)
        # picture -> crop after patch -> picture.
        from_patch = self._patches.from_patch(indices)
        matrices = np.stack([compose(outer, inner) for outer, inner in zip(to_crop, from_patch, strict=True)])
        crops = self._sampler(indices, matrices, size)
        if crops.device != self.device:
            crops = (crops.pin_memory() if self.device.type == "cuda" else crops).to(self.device, non_blocking=True)
        crops = recolour(crops, draw_looks(size, self.strength, numbers))
        points = np.stack([transform_points(m, j[:, :2]) for m, j in zip(to_crop, joints, strict=True)])
        inside = ((points > -0.5) & (points < np.array(size) - 0.5)).all(2)
        known = mirror_names((joints[:, :, 2] > 0) & inside, mirrored, self.skeleton)
        points = mirror_names(points, mirrored, self.skeleton)
        empty = self._empty[indices][:, None]
        # A crop's square pixels for each of the picture's: the affine's determinant.
        areas = self._areas[indices] * np.abs(np.linalg.det(to_crop[:, :, :2]))
        return PoseBatch(
            crops=crops,
            points=self._send(np.where(known[:, :, None], points, 0.0)),
            labelled=self._send((known | empty) * self._weights[indices][:, None]),
            present=self._send(known & ~empty),
            areas=self._send(areas),
            indices=torch.from_numpy(indices).to(self.device, non_blocking=True),
            visible=self._send(mirror_names(joints[:, :, 2] > 1, mirrored, self.skeleton)),
        )

    def _send(self, values: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(self.device, non_blocking=True)
