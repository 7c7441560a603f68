"""Person crops for training: each picture is read once, its people kept as small JPEG patches in memory."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from service.crops import crop_people, transform_points
from service.skeletons import Skeleton
from training.augment import Augmentation, mirror, random_crop_matrix, recolour
from training.datasets.coco import read_rgb
from training.datasets.union import PoseSample

# A patch reaches this many boxes, room for padding, scale, shift and rotation of the crop.
_REACH = 2.6
# A patch has at most this many pixels for each pixel of the unaugmented crop, along one axis.
_DETAIL = 1.25


class CropDataset(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Augmented crops: uint8 [H, W, 3], points float32 [K, 2] in crop pixels, labelled float32 [K].

    A sample depends on ``(seed, draw, index)`` alone, whatever process makes it: the key to repeatable and
    resumable runs. Indices come from the sampler as ``(draw, index)``.
    """

    def __init__(
        self,
        samples: Sequence[PoseSample],
        skeleton: Skeleton,
        size: tuple[int, int],
        strength: Augmentation,
        seed: int,
    ) -> None:
        """``size``: width, height of the crops."""
        self.samples, self.skeleton, self.size = samples, skeleton, size
        self.strength, self.seed = strength, seed
        self._patches: dict[int, tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        draw, index = key
        rng = np.random.default_rng((self.seed, draw, index))
        sample = self.samples[index]
        patch, to_patch = self._patch(index)
        matrix, mirrored = random_crop_matrix(
            sample.box, sample.keypoints, self.size, self.skeleton, self.strength, rng
        )
        # image -> crop is (patch -> crop) after (image -> patch); patches are only scaled and shifted.
        from_patch = _compose(matrix, _invert_scale(to_patch))
        crop = crop_people(patch, from_patch[None], self.size)[0]
        keypoints = sample.keypoints.copy()
        keypoints[:, :2] = transform_points(matrix, keypoints[:, :2])
        if mirrored:
            crop, keypoints = mirror(crop, keypoints, self.skeleton)
        crop = recolour(crop, self.strength, rng)
        inside = (keypoints[:, :2] > -0.5).all(1) & (keypoints[:, :2] < np.array(self.size) - 0.5).all(1)
        labelled = (keypoints[:, 2] > 0) & inside
        return (
            torch.from_numpy(crop),
            torch.from_numpy(keypoints[:, :2].astype(np.float32)),
            torch.from_numpy(labelled.astype(np.float32)),
        )

    def _patch(self, index: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
        """The picture around one person, and scale and offset [2, 2] (rows: scale, offset) image to patch points."""
        kept = self._patches.get(index)
        if kept is None:
            kept = self._cut(self.samples[index])
            self._patches[index] = kept
        encoded, to_patch = kept
        patch = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
        assert patch is not None  # we encoded it ourselves
        return np.asarray(patch, np.uint8), to_patch

    def _cut(self, sample: PoseSample) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
        image = read_rgb(sample.path)
        width, height = self.size
        extent = sample.box[2:] - sample.box[:2]
        side = max(extent[0] / width, extent[1] / height)  # image pixels for each crop pixel
        reach = np.array([width, height]) * side * _REACH / 2
        center = (sample.box[:2] + sample.box[2:]) / 2
        x1, y1 = np.maximum(np.floor(center - reach), 0).astype(int)
        x2, y2 = np.minimum(np.ceil(center + reach), (image.shape[1], image.shape[0])).astype(int)
        patch = image[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]
        shrink = min(1.0, _DETAIL / max(side, 1e-6))
        new = (max(1, round(patch.shape[1] * shrink)), max(1, round(patch.shape[0] * shrink)))
        scale = np.array([new[0] / patch.shape[1], new[1] / patch.shape[0]])
        if shrink < 1.0:
            patch = cv2.resize(patch, new, interpolation=cv2.INTER_AREA)
        offset = (0.5 - np.array([x1, y1])) * scale - 0.5
        ok, encoded = cv2.imencode(".jpg", patch[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 93])
        if not ok:
            raise ValueError(f"{sample.path}: could not keep a patch of shape {patch.shape}")
        return encoded, np.stack([scale, offset])


def _invert_scale(to_patch: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    scale, offset = to_patch
    return np.concatenate([np.diag(1 / scale), (-offset / scale)[:, None]], axis=1)


def _compose(outer: npt.NDArray[np.float64], inner: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    linear = outer[:, :2] @ inner[:, :2]
    return np.concatenate([linear, (outer[:, :2] @ inner[:, 2] + outer[:, 2])[:, None]], axis=1)


class RepeatSampler:
    """Endless, seeded, resumable stream of ``(draw, index)``, each index drawn in proportion to its repeat."""

    def __init__(self, repeats: Sequence[float], seed: int, start: int = 0) -> None:
        self.share = np.asarray(repeats, np.float64) / np.sum(repeats)
        self.seed, self.start = seed, start

    def take(self, count: int) -> list[tuple[int, int]]:
        """Draws number ``start`` to ``start + count``, the same whatever was taken before."""
        # Blocks of fixed length make the stream independent of where a run was resumed.
        block = 1 << 14
        keys: list[tuple[int, int]] = []
        for number in range(self.start // block, (self.start + count - 1) // block + 1):
            indices = np.random.default_rng((self.seed, 7, number)).choice(len(self.share), block, p=self.share)
            keys.extend((number * block + i, int(index)) for i, index in enumerate(indices))
        first = self.start - (self.start // block) * block
        return keys[first : first + count]
