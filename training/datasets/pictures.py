"""Pictures of the person detector's training in memory: pixels, boxes, outlines, and where nobody vouches for them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from training.datasets.coco import ImageRecord, read_rgb
from training.datasets.objects import PERSON, BoxRecord, people_boxes

Boxes = npt.NDArray[np.float32]
Image = npt.NDArray[np.uint8]
# Polygons [n, 2] of one person; none where the outline is not known.
Outline = tuple[npt.NDArray[np.float32], ...]


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
        outlines: of each box, in its pixels; none at all where no outline is known.
    """

    image: Image
    boxes: Boxes
    crowds: Boxes
    complete: bool
    to_input: float
    labels: npt.NDArray[np.int64] | None = None
    outlines: tuple[Outline, ...] = ()

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
    outlines = tuple(
        tuple(np.asarray(np.reshape(polygon, (-1, 2)) * factor[:2], np.float32) for polygon in polygons)
        for polygons in known.outlines
    )
    return Picture(
        image,
        np.asarray(known.boxes * factor, np.float32),
        np.asarray(known.crowds * factor, np.float32),
        known.complete,
        input_size / max(image.shape[:2]),
        known.labels,
        outlines,
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

    @property
    def outlined(self) -> bool:
        """Whether somebody's outline is known; no picture is decoded to tell."""
        known = people_boxes(self._record) if isinstance(self._record, ImageRecord) else self._record
        return any(known.outlines)

    def __call__(self) -> Picture:
        """The decoded picture. Raises DatasetError when there is none."""
        if self._picture is not None:
            return self._picture
        picture = load_picture(self._record, *self._sizes)
        if self._keep:
            self._picture = picture
        return picture
