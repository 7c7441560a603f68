"""If these fail, the detector learns boxes that do not lie on the people, or that unlabelled people are background."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from service.skeletons import make_skeleton
from training.datasets.coco import CocoSet, ImageRecord
from training.datasets.detection import DetectionAugmentation, DetectionDataset, collate
from training.datasets.pictures import Picture, held_out

SIZE = 128
PLAIN = DetectionAugmentation(size=SIZE, colour=0.0, mosaic=0.0, scale=(0.5, 2.0))
NOTHING = np.zeros((0, 4), np.float32)


def picture(*, complete: bool = True) -> Picture:
    """A black picture with one white person, 30 wide and 60 high."""
    image = np.zeros((150, 200, 3), np.uint8)
    image[50:110, 80:110] = 255
    return Picture(image, np.array([[80, 50, 110, 110]], np.float32), NOTHING, complete, SIZE / 200)


def dataset(options: DetectionAugmentation, pictures: list[Picture], seed: int = 0) -> DetectionDataset:
    source = CocoSet("drawn", make_skeleton("drawn", ["nose"], []), ())
    return DetectionDataset([(source, [partial(copy.copy, p) for p in pictures])], options, seed, 1000)


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_boxes_lie_on_the_people_they_belong_to(flip: float, mosaic: float) -> None:
    samples = dataset(PLAIN.model_copy(update={"flip": flip, "mosaic": mosaic, "min_visible": 0.0}), [picture()])
    seen = 0
    for index in range(60):
        image, target = samples[index]
        drawn = np.zeros((SIZE, SIZE), bool)
        for x1, y1, x2, y2 in target.people.numpy():
            seen += 1
            drawn[round(y1) : round(y2), round(x1) : round(x2)] = True
        white = image.numpy().min(-1) > 127
        # White pixels are people: the boxes cover them and nothing else but the rounding at their edges.
        assert (white ^ drawn).sum() <= 4 * 4 * max(1, len(target.people)) + 0.1 * white.sum()
    assert seen >= 30


def test_sample_is_a_function_of_seed_and_index() -> None:
    options = DetectionAugmentation(size=SIZE)
    first, again = dataset(options, [picture()], seed=3), dataset(options, [picture()], seed=3)
    first[0]
    assert torch.equal(first[7][0], again[7][0])
    assert torch.equal(first[7][1].people, again[7][1].people)
    assert not torch.equal(first[7][0], dataset(options, [picture()], seed=4)[7][0])


def test_part_of_an_incomplete_picture_is_an_ignore_region() -> None:
    image, target = dataset(PLAIN.model_copy(update={"flip": 0.0}), [picture(complete=False)])[0]
    inside = np.any(image.numpy() != 114, axis=-1)
    rows, columns = np.where(inside)
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert target.ignored[-1].tolist() == pytest.approx(expected)


def test_people_cut_to_a_sliver_are_ignored_not_background() -> None:
    options = PLAIN.model_copy(update={"scale": (4.0, 4.001), "min_visible": 0.9})
    cut = 0
    for index in range(50):
        _, target = dataset(options, [picture()])[index]
        assert len(target.people) + len(target.ignored) <= 1
        cut += len(target.ignored)
    assert cut > 0


def test_collate_keeps_order() -> None:
    samples = dataset(DetectionAugmentation(size=SIZE), [picture()])
    images, targets = collate([samples[4], samples[2]])
    assert images.shape == (2, SIZE, SIZE, 3)
    assert images.dtype == torch.uint8
    assert torch.equal(images[1], samples[2][0])
    assert torch.equal(targets[0].people, samples[4][1].people)


def test_held_out_share_is_near_what_was_asked_and_fixed() -> None:
    records = [ImageRecord(n, Path(f"/a/{n:012d}.jpg"), 1, 1, True, ()) for n in range(4000)]
    chosen = [held_out(r, 0.1) for r in records]
    assert 0.08 < np.mean(chosen) < 0.12
    assert not any(held_out(r, 0.0) for r in records)
    # The same pictures elsewhere on disk: still the same ones.
    assert chosen == [held_out(ImageRecord(n, Path(f"/b/{n:012d}.jpg"), 1, 1, True, ()), 0.1) for n in range(4000)]
