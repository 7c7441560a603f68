"""Training pictures for the person detector: crops at many scales and mosaics, with boxes and ignore regions.

A picture is decoded when it is first drawn and then stays in memory, unless a recipe says otherwise. Sample ``index``
of seed ``seed`` is always the same, whatever was drawn before it and however many workers draw: that makes runs
repeatable and a resumed run the same as an uninterrupted one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from service.letterbox import GREY
from training.datasets.coco import CocoSet, ImageRecord, read_rgb
from training.datasets.objects import PERSON, BoxRecord, BoxSet, people_boxes
from training.networks.detection_loss import Target
from training.recipe import Strict

Boxes = npt.NDArray[np.float32]
Image = npt.NDArray[np.uint8]


class DetectionAugmentation(Strict):
    """How samples are cut. Scales are relative to the picture as the service would letterbox it."""

    size: int = Field(320, ge=64, multiple_of=64, description="side of the square training sample")
    scale: tuple[float, float] = Field((0.6, 1.7), description="range of the log-uniform scale of single pictures")
    mosaic: float = Field(0.5, ge=0, le=1, description="share of samples made of four pictures")
    mosaic_scale: tuple[float, float] = Field((0.5, 1.3), description="the same for pictures in a mosaic")
    person_height: tuple[float, float] = Field(
        (40.0, 280.0), description="pixels of the person of a single-person crop (pictures not fully labelled)"
    )
    colour: float = Field(0.35, ge=0, le=1, description="strength of brightness, contrast, saturation changes")
    flip: float = Field(0.5, ge=0, le=1)
    min_visible: float = Field(0.35, ge=0, le=1, description="people cut down to less are ignored")
    min_size: float = Field(6.0, ge=1, description="square root of the area under which people are ignored")
    cache_side: int = Field(512, ge=64, description="longest side at which pictures are kept in memory")


@dataclass(frozen=True)
class Picture:
    """One picture in memory.

    Attributes:
        image: RGB uint8 [H, W, 3].
        boxes: [G, 4] in its pixels.
        crowds: [C, 4] regions to be ignored.
        complete: false where things may be in it that nobody labelled.
        to_input: scale to the letterbox.
        labels: int64 [G] COCO category ids; None where all are people.
    """

    image: Image
    boxes: Boxes
    crowds: Boxes
    complete: bool
    to_input: float
    labels: npt.NDArray[np.int64] | None = None

    @property
    def categories(self) -> npt.NDArray[np.int64]:
        """Int64 [G] COCO category ids."""
        return np.full(len(self.boxes), PERSON, np.int64) if self.labels is None else self.labels

    @property
    def people(self) -> Boxes:
        """Boxes of people [P, 4]."""
        return self.boxes[self.categories == PERSON]


def held_out(record: ImageRecord | BoxRecord, share: float) -> bool:
    """Whether a picture is kept for measuring during training: decided by its name, so the same in every run."""
    return zlib.crc32(record.path.name.encode()) % 1000 < share * 1000


def load_picture(record: ImageRecord | BoxRecord, longest: int, input_size: int) -> Picture:
    """Decode one picture, made smaller where its longest side exceeds ``longest``."""
    known = people_boxes(record) if isinstance(record, ImageRecord) else record
    image = read_rgb(record.path)
    scale = min(1.0, longest / max(image.shape[:2]))
    if scale < 1:
        size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    factor = np.array([image.shape[1] / record.width, image.shape[0] / record.height] * 2)
    return Picture(
        image,
        np.asarray(known.boxes * factor, np.float32),
        np.asarray(known.crowds * factor, np.float32),
        known.complete,
        input_size / max(image.shape[:2]),
        known.labels,
    )


class PictureFile:
    """A picture on disk; see :func:`load_picture` for the arguments.

    ``all_labelled=False`` says that nobody vouches for its background, whatever the record says; ``keep=False`` decodes
    it each time instead of once.
    """

    def __init__(
        self,
        record: ImageRecord | BoxRecord,
        longest: int,
        input_size: int,
        *,
        all_labelled: bool = True,
        keep: bool = True,
    ) -> None:
        self._keep = keep
        self._record = replace(record, complete=record.complete and all_labelled)
        self._sizes = longest, input_size
        self._picture: Picture | None = None

    def __call__(self) -> Picture:
        """The decoded picture. Raises DatasetError when there is none."""
        if self._picture is not None:
            return self._picture
        picture = load_picture(self._record, *self._sizes)
        if self._keep:
            self._picture = picture
        return picture


class DetectionDataset(Dataset[tuple[Tensor, Target]]):
    """Augmented samples without end; see the module.

    Args:
        sets: each set with its pictures; the set's ``repeat`` weighs how often they are drawn.
        augmentation: how samples are cut.
        seed: samples are a function of it and of their index.
        length: number of samples.
    """

    def __init__(
        self,
        sets: Sequence[tuple[CocoSet | BoxSet, Sequence[Callable[[], Picture]]]],
        augmentation: DetectionAugmentation,
        seed: int,
        length: int,
    ) -> None:
        self.pictures = [picture for _, pictures in sets for picture in pictures]
        weights = np.concatenate([np.full(len(pictures), source.repeat) for source, pictures in sets])
        self.cumulative = np.cumsum(weights / weights.sum())
        self.augmentation = augmentation
        self.seed = seed
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Sample ``index``: RGB uint8 [S, S, 3] and its target."""
        rng = np.random.default_rng((self.seed, index))
        options = self.augmentation
        side = options.size
        canvas = np.full((side, side, 3), GREY, np.uint8)
        boxes: list[Boxes] = []
        labels: list[npt.NDArray[np.int64]] = []
        ignored: list[Boxes] = []
        if rng.random() < options.mosaic:
            x, y = (int(v) for v in rng.uniform(0.3, 0.7, 2) * side)
            cells = [(0, 0, x, y), (x, 0, side, y), (0, y, x, side), (x, y, side, side)]
            scales = options.mosaic_scale
        else:
            cells, scales = [(0, 0, side, side)], options.scale
        for cell in cells:
            found, categories, hidden = self._paste(canvas, cell, scales, rng)
            boxes.append(found)
            labels.append(categories)
            ignored.append(hidden)
        canvas = _colour(canvas, options.colour, rng)
        return torch.from_numpy(canvas), Target(
            torch.from_numpy(np.concatenate(boxes)),
            torch.from_numpy(np.concatenate(ignored)),
            torch.from_numpy(np.concatenate(labels)),
        )

    def _paste(
        self, canvas: Image, cell: tuple[int, int, int, int], scales: tuple[float, float], rng: np.random.Generator
    ) -> tuple[Boxes, npt.NDArray[np.int64], Boxes]:
        """Fill one cell of the canvas with a random picture; returns boxes, their categories, and ignore regions."""
        options = self.augmentation
        picture = self.pictures[min(int(np.searchsorted(self.cumulative, rng.random())), len(self.pictures) - 1)]()
        if picture.complete or len(picture.boxes) != 1:
            scale = picture.to_input * float(np.exp(rng.uniform(*np.log(scales))))
        else:
            height = float(picture.boxes[0, 3] - picture.boxes[0, 1])
            scale = float(np.exp(rng.uniform(*np.log(options.person_height)))) / max(height, 1)
        left, top, right, bottom = cell
        source, place = [], []
        for length, low, high in ((picture.image.shape[1], left, right), (picture.image.shape[0], top, bottom)):
            # Either a random part of the picture fills the cell, or the whole picture lies somewhere in it.
            taken = min(length, max(1, round((high - low) / scale)))
            filled = min(high - low, max(1, round(taken * scale)))
            start = int(rng.integers(0, length - taken + 1))
            at = low + int(rng.integers(0, high - low - filled + 1))
            source.append((start, taken))
            place.append((at, filled))
        (sx, sw), (sy, sh) = source
        (px, pw), (py, ph) = place
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        part = cv2.resize(picture.image[sy : sy + sh, sx : sx + sw], (pw, ph), interpolation=method)
        flip = rng.random() < options.flip
        canvas[py : py + ph, px : px + pw] = part[:, ::-1] if flip else part
        factor = np.array([pw / sw, ph / sh] * 2, np.float32)

        def moved(boxes: Boxes) -> Boxes:
            shifted = (boxes - np.array([sx, sy, sx, sy], np.float32)) * factor
            if flip:
                shifted = np.stack([pw - shifted[:, 2], shifted[:, 1], pw - shifted[:, 0], shifted[:, 3]], 1)
            return np.asarray(shifted + np.array([px, py, px, py], np.float32), np.float32)

        bounds = np.array([px, py, px + pw, py + ph], np.float32)
        whole = moved(picture.boxes)
        clipped = _clip(whole, bounds)
        area, visible = _area(whole), _area(clipped)
        good = (visible >= options.min_visible * area) & (visible >= options.min_size**2)
        crowds = _clip(moved(picture.crowds), bounds)
        hidden = [clipped[~good & (visible > 0)], crowds[_area(crowds) > 0]]
        if not picture.complete:
            hidden.append(bounds[None])
        return clipped[good], picture.categories[good], np.concatenate(hidden)


def _clip(boxes: Boxes, bounds: Boxes) -> Boxes:
    return np.concatenate(
        [np.clip(boxes[:, :2], bounds[:2], bounds[2:]), np.clip(boxes[:, 2:], bounds[:2], bounds[2:])], 1
    )


def _area(boxes: Boxes) -> Boxes:
    return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), np.float32)


def _colour(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Random saturation, contrast, brightness and tint; one picture in twenty becomes grey."""
    if strength == 0:
        return image
    saturation = 0.0 if rng.random() < 0.05 else 1 + rng.uniform(-strength, strength)
    grey = np.asarray(cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8)
    mixed = np.asarray(cv2.addWeighted(image, saturation, grey, 1 - saturation, 0), np.uint8)
    contrast = 1 + rng.uniform(-strength, strength)
    tint = rng.uniform(-strength, strength) * 80 + rng.uniform(-strength, strength, 3) * 25
    values = (np.arange(256, dtype=np.float32)[:, None] - 127) * contrast + 127 + tint[None]
    table = np.clip(values, 0, 255).astype(np.uint8).reshape(1, 256, 3)
    return np.asarray(cv2.LUT(mixed, table), np.uint8)


def collate(samples: Sequence[tuple[Tensor, Target]]) -> tuple[Tensor, list[Target]]:
    """Images uint8 [N, S, S, 3] and their targets."""
    return torch.stack([s[0] for s in samples]), [s[1] for s in samples]
