"""Training samples for the person detector: crops at many scales, mosaics, pasted people; boxes and ignore regions.

A picture is decoded when it is first drawn and then stays in memory, unless a recipe says otherwise. Sample ``index``
of seed ``seed`` is always the same, whatever was drawn before it and however many workers draw: that makes runs
repeatable and a resumed run the same as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import cv2
import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from service.letterbox import GREY
from training.datasets.coco import CocoSet
from training.datasets.copy_paste import draw_cutout, mask_box, paste_person, seen_boxes
from training.datasets.objects import PERSON, BoxSet
from training.datasets.pictures import Boxes, Image, Picture
from training.networks.detection_loss import Target
from training.recipe import Strict

Labels = npt.NDArray[np.int64]


class DetectionAugmentation(Strict):
    """How samples are cut. Scales are relative to the picture as the service would letterbox it."""

    size: int = Field(320, ge=64, multiple_of=64, description="side of the square training sample")
    sizes: tuple[Annotated[int, Field(ge=64, multiple_of=32)], ...] = Field(
        (), description="sides of which each batch takes one, what it shows scaled alike; none: size alone"
    )
    scale: tuple[float, float] = Field((0.6, 1.7), description="range of the log-uniform scale of single pictures")
    mosaic: float = Field(0.5, ge=0, le=1, description="share of samples made of four pictures")
    mosaic_scale: tuple[float, float] = Field((0.5, 1.3), description="the same for pictures in a mosaic")
    person_height: tuple[float, float] = Field(
        (40.0, 280.0), description="pixels of the person of a single-person crop (pictures not fully labelled)"
    )
    mixup: float = Field(0.0, ge=0, le=1, description="share of samples that are laid over another one (YOLOX 2021)")
    copy_paste: float = Field(0.0, ge=0, le=1, description="share of samples into which people are pasted")
    pasted: int = Field(3, ge=1, description="most people that are pasted into one sample")
    pasted_height: tuple[float, float] = Field((28.0, 220.0), description="pixels of a pasted person")
    plain_last: float = Field(
        0.0, ge=0, le=1, description="last share of the schedule without mosaic and mixup (YOLOX 2021): as is served"
    )
    colour: float = Field(0.35, ge=0, le=1, description="strength of brightness, contrast, saturation changes")
    flip: float = Field(0.5, ge=0, le=1)
    min_visible: float = Field(0.35, ge=0, le=1, description="people cut down to less are ignored")
    min_size: float = Field(6.0, ge=1, description="square root of the area under which people are ignored")
    cache_side: int = Field(512, ge=64, description="longest side at which pictures are kept in memory")


class DetectionDataset(Dataset[tuple[Tensor, Target]]):
    """Augmented samples without end; see the module.

    Args:
        sets: each set with its pictures; the set's ``repeat`` weighs how often they are drawn.
        augmentation: how samples are cut.
        seed: samples are a function of it and of their index.
        length: number of samples.
        batch: so many samples in a row have one size.
        donors: pictures whose people may be pasted into others.
    """

    def __init__(
        self,
        sets: Sequence[tuple[CocoSet | BoxSet, Sequence[Callable[[], Picture]]]],
        augmentation: DetectionAugmentation,
        seed: int,
        length: int,
        *,
        batch: int = 1,
        donors: Sequence[Callable[[], Picture]] = (),
    ) -> None:
        self.pictures = [picture for _, pictures in sets for picture in pictures]
        weights = np.concatenate([np.full(len(pictures), source.repeat) for source, pictures in sets])
        self.cumulative = np.cumsum(weights / weights.sum())
        self.augmentation = augmentation
        self.seed = seed
        self.length = length
        self.batch = batch
        self.donors = donors

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Sample ``index``: RGB uint8 [S, S, 3] and its target."""
        rng = np.random.default_rng((self.seed, index))
        options = self.augmentation
        side = self.side(index)
        plain = index >= (1 - options.plain_last) * self.length
        mosaic = 0.0 if plain else options.mosaic
        canvas, boxes, labels, ignored = self._compose(side, mosaic, rng)
        # Draws that no option asks for are not made: recipes without them keep their samples.
        if options.mixup and not plain and rng.random() < options.mixup:
            other = self._compose(side, mosaic, rng)
            share = float(rng.beta(8.0, 8.0))
            canvas = np.asarray(cv2.addWeighted(canvas, share, other[0], 1 - share, 0), np.uint8)
            boxes = np.concatenate([boxes, other[1]])
            labels = np.concatenate([labels, other[2]])
            ignored = np.concatenate([ignored, other[3]])
        if self.donors and options.copy_paste and rng.random() < options.copy_paste:
            boxes, labels, ignored = self._people_pasted(canvas, boxes, labels, ignored, rng)
        canvas = _colour(canvas, options.colour, rng)
        return torch.from_numpy(canvas), Target(
            torch.from_numpy(boxes), torch.from_numpy(ignored), torch.from_numpy(labels)
        )

    def side(self, index: int) -> int:
        """S of sample ``index``, the same for all of its batch."""
        sizes = self.augmentation.sizes
        if not sizes:
            return self.augmentation.size
        # A stream of its own, which no sample's seed can meet: those have two numbers.
        return int(np.random.default_rng((self.seed, 0, index // self.batch)).choice(sizes))

    def _compose(self, side: int, mosaic: float, rng: np.random.Generator) -> tuple[Image, Boxes, Labels, Boxes]:
        """A canvas of one picture or four, its boxes, their categories, and ignore regions."""
        options = self.augmentation
        canvas = np.full((side, side, 3), GREY, np.uint8)
        if rng.random() < mosaic:
            x, y = (int(v) for v in rng.uniform(0.3, 0.7, 2) * side)
            cells = [(0, 0, x, y), (x, 0, side, y), (0, y, x, side), (x, y, side, side)]
            scales = options.mosaic_scale
        else:
            cells, scales = [(0, 0, side, side)], options.scale
        boxes, labels, ignored = zip(*(self._paste(canvas, cell, scales, rng) for cell in cells), strict=True)
        return canvas, np.concatenate(boxes), np.concatenate(labels), np.concatenate(ignored)

    def _people_pasted(
        self, canvas: Image, boxes: Boxes, labels: Labels, ignored: Boxes, rng: np.random.Generator
    ) -> tuple[Boxes, Labels, Boxes]:
        """Paste people into the canvas, in place; returns boxes, categories and ignore regions as they are then."""
        options = self.augmentation
        grown = canvas.shape[0] / options.size
        low, high = options.pasted_height
        masks = []
        for _ in range(int(rng.integers(1, options.pasted + 1))):
            cutout = draw_cutout([self.donors[int(rng.integers(len(self.donors)))]()], rng)
            mask = None if cutout is None else paste_person(canvas, cutout, (low * grown, high * grown), rng)
            if mask is not None:
                masks.append(mask)
        if not masks:
            return boxes, labels, ignored
        over = np.logical_or.reduce(masks)
        boxes, seen = seen_boxes(boxes, (), over)
        groups, shares = [boxes], [seen]
        for number, mask in enumerate(masks):
            later = np.logical_or.reduce([np.zeros_like(mask), *masks[number + 1 :]])
            box, share = seen_boxes(mask_box(mask)[None], (mask,), later)
            groups.append(box)
            shares.append(share)
        everybody = np.concatenate(groups)
        labels = np.concatenate([labels, np.full(len(masks), PERSON, np.int64)])
        good = (np.concatenate(shares) >= options.min_visible) & (_area(everybody) >= options.min_size**2)
        return everybody[good], labels[good], np.concatenate([ignored, everybody[~good]])

    def _paste(
        self, canvas: Image, cell: tuple[int, int, int, int], scales: tuple[float, float], rng: np.random.Generator
    ) -> tuple[Boxes, Labels, Boxes]:
        """Fill one cell of the canvas with a random picture; returns boxes, their categories, and ignore regions."""
        options = self.augmentation
        grown = canvas.shape[0] / options.size
        picture = self.pictures[min(int(np.searchsorted(self.cumulative, rng.random())), len(self.pictures) - 1)]()
        if picture.complete or len(picture.boxes) != 1:
            scale = grown * picture.to_input * float(np.exp(rng.uniform(*np.log(scales))))
        else:
            height = float(picture.boxes[0, 3] - picture.boxes[0, 1])
            scale = grown * float(np.exp(rng.uniform(*np.log(options.person_height)))) / max(height, 1)
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
