"""What the exported graphs are tried on: person crops and letterboxed pictures, real ones where there are any."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from export.checkpoints import ExportError
from service.crops import box_crop_matrices, crop_people
from service.letterbox import letterbox
from service.scenes import render_scene
from training.datasets.coco import DatasetError, read_coco, read_rgb
from training.recipe import DataSource

Pixels = npt.NDArray[np.uint8]
RENDERED = "rendered scenes"


@dataclass(frozen=True)
class Sample:
    """One picture: RGB uint8 [H, W, 3], its people's boxes float64 [P, 4] x1 y1 x2 y2 in edge coordinates."""

    image: Pixels
    boxes: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Samples:
    """Pictures to check with; ``name`` says which, without paths."""

    name: str
    pictures: tuple[Sample, ...]

    def crops(self, size: tuple[int, int], most: int) -> Pixels:
        """At most ``most`` people, uint8 [P, height, width, 3], cut as the service cuts them."""
        cut = [crop_people(s.image, box_crop_matrices(s.boxes, size), size) for s in self.pictures if len(s.boxes)]
        return np.concatenate(cut)[:most]

    def letterboxed(self, side: int) -> Pixels:
        """All pictures, uint8 [N, side, side, 3]."""
        return np.stack([letterbox(sample.image, side)[0] for sample in self.pictures])


def load_samples(given: tuple[Path, Path] | None, trained_on: Sequence[DataSource], count: int) -> Samples:
    """``count`` pictures with people.

    Args:
        given: annotation file and picture folder that the caller names; else
        trained_on: the recipe's data sets, those of them that are on this machine; else rendered scenes are drawn.
        count: spread evenly over each data set.

    Raises:
        ExportError: a given data set cannot be read or shows nobody.
    """
    sources = [DataSource(annotations=given[0], images=given[1])] if given else []
    here = [source for source in trained_on if source.annotations.is_file() and source.images.is_dir()]
    sources = sources or list({source.annotations: source for source in here}.values())
    if not sources:
        return Samples(RENDERED, tuple(_rendered(count)))
    try:
        share = -(-count // len(sources))
        pictures = [sample for source in sources for sample in _from_coco(source, share)]
    except DatasetError as error:
        raise ExportError(str(error)) from error
    if not pictures:
        raise ExportError(f"nobody to check with in {[str(s.annotations) for s in sources]}")
    return Samples(", ".join(source.annotations.stem for source in sources), tuple(pictures))


def _from_coco(source: DataSource, count: int) -> Iterator[Sample]:
    people = [
        (image.path, np.stack(boxes))
        for image in read_coco(source).images
        if (boxes := [person.box for person in image.people if not person.crowd])
    ]
    for index in np.linspace(0, len(people) - 1, min(count, len(people))).astype(int):
        path, boxes = people[index]
        yield Sample(read_rgb(path), boxes)


def _rendered(count: int) -> Iterator[Sample]:
    for seed in range(count):
        scene = render_scene(seed, people=(1, 4))
        yield Sample(scene.image, np.array([person.box for person in scene.people]).reshape(-1, 4))
