"""If these fail, pasted people have wrong boxes, or people whom nobody can see any more are still to be found."""

from __future__ import annotations

import copy
from functools import partial

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch

from service.skeletons import make_skeleton
from training.datasets.coco import CocoSet
from training.datasets.copy_paste import Cutout, cut_out, mask_box, paste_person, seen_boxes
from training.datasets.detection import DetectionAugmentation, DetectionDataset
from training.datasets.pictures import Picture

NOTHING = np.zeros((0, 4), np.float32)
SIDE = 128


def ellipse(centre: tuple[float, float], axes: tuple[float, float]) -> npt.NDArray[np.float32]:
    """Polygon [64, 2] in edge coordinates."""
    turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    return np.stack([centre[0] + axes[0] * np.cos(turn), centre[1] + axes[1] * np.sin(turn)], 1).astype(np.float32)


def white_person() -> Picture:
    """A white ellipse, 40 wide and 100 high, on blue; its outline is known."""
    image = np.zeros((160, 160, 3), np.uint8)
    image[..., 2] = 200
    outline = ellipse((80.0, 75.0), (20.0, 50.0))
    cv2.fillPoly(image, [np.round(outline - 0.5).astype(np.int32)], (255, 255, 255))
    return Picture(image, np.array([[60, 25, 100, 125]], np.float32), NOTHING, True, SIDE / 160, None, ((outline,),))


def cutout() -> Cutout:
    found = cut_out(white_person(), 0)
    assert found is not None
    return found


def test_a_cutout_is_the_person_and_a_margin() -> None:
    found = cutout()
    assert found.alpha.shape == (106, 46)
    assert found.image.shape == (106, 46, 3)
    # The area of an ellipse, to the pixels that its rim cuts.
    assert (found.alpha > 0).sum() == pytest.approx(np.pi * 20 * 50, rel=0.04)
    assert (found.image[found.alpha > 0] == 255).mean() > 0.99


def test_people_without_outline_or_too_small_are_not_cut_out() -> None:
    known = white_person()
    unknown = Picture(known.image, known.boxes, NOTHING, True, 1.0, None, ((),))
    assert cut_out(unknown, 0) is None
    assert cut_out(Picture(known.image, known.boxes, NOTHING, True, 1.0), 0) is None
    small = Picture(known.image, known.boxes, NOTHING, True, 1.0, None, ((ellipse((80, 75), (4, 9)),),))
    assert cut_out(small, 0) is None


def test_the_box_is_that_of_the_pixels_that_were_pasted_and_the_edge_is_soft() -> None:
    rng = np.random.default_rng(0)
    soft = 0
    for _ in range(40):
        canvas = np.zeros((SIDE, SIDE, 3), np.uint8)
        mask = paste_person(canvas, cutout(), (30.0, 120.0), rng)
        if mask is None:
            continue
        x1, y1, x2, y2 = mask_box(mask)
        bright = canvas[..., 0] > 127
        assert np.abs(mask_box(bright) - [x1, y1, x2, y2]).max() <= 1
        soft += int(((canvas[..., 0] > 20) & (canvas[..., 0] < 235)).sum() > 0)
        # None of the blue around the person came along, but what the blur of the edge mixed in.
        around = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
        assert canvas[..., 2][~around].max(initial=0) == 0
    assert soft > 30


def test_what_is_covered_shrinks_the_box_and_counts_as_unseen() -> None:
    covered = np.zeros((SIDE, SIDE), bool)
    covered[0:SIDE, 40:128] = True
    boxes = np.array([[20.5, 10.25, 60.5, 50.75], [0.5, 60.5, 30.5, 90.5], [50, 10, 70, 60]], np.float32)
    found, shares = seen_boxes(boxes, (), covered)
    assert found[0].tolist() == [20.5, 10.25, 40.0, 50.75]
    assert shares[0] == pytest.approx(20 / 41)
    assert found[1].tolist() == boxes[1].tolist()
    assert shares[1] == 1
    assert shares[2] == 0


def test_shares_of_an_outlined_person_are_of_its_own_pixels() -> None:
    own = np.zeros((SIDE, SIDE), bool)
    own[20:60, 20:30] = True
    own[50:60, 20:60] = True
    covered = np.zeros_like(own)
    covered[15:45, 35:70] = True
    box = mask_box(own)[None]
    found, shares = seen_boxes(box, (own,), covered)
    # The box is half covered, the L inside of it not at all.
    assert shares.tolist() == [1.0]
    assert found.tolist() == box.tolist()


def samples(changes: dict[str, object], *, donors: bool = True) -> DetectionDataset:
    dark = Picture(np.zeros((SIDE, SIDE, 3), np.uint8), NOTHING, NOTHING, True, 1.0)
    source = CocoSet("drawn", make_skeleton("drawn", ["nose"], []), ())
    options = DetectionAugmentation(
        size=SIDE, colour=0.0, mosaic=0.0, flip=0.0, scale=(0.999, 1.001), copy_paste=1.0, min_visible=0.3
    ).model_copy(update=changes)
    givers = [partial(copy.copy, white_person())] if donors else []
    return DetectionDataset([(source, [partial(copy.copy, dark)])], options, 0, 100, batch=4, donors=givers)


def test_everybody_pasted_into_a_sample_has_a_box() -> None:
    drawn = samples({})
    counts = []
    for index in range(40):
        image, target = drawn[index]
        white = image.numpy().min(-1) > 127
        seen = np.zeros_like(white)
        for x1, y1, x2, y2 in torch.cat([target.people, target.ignored]).round().int().tolist():
            seen[y1:y2, x1:x2] = True
            assert white[y1:y2, x1:x2].mean() > 0.3
        assert not (white & ~seen).any()
        counts.append(len(target.people))
    assert set(counts) >= {1, 2, 3}
    nobody = samples({}, donors=False)[0][1]
    assert len(nobody.people) == 0


def test_pasting_over_people_ignores_those_who_vanish() -> None:
    """Many people pasted at one place: the more of them must be seen, the fewer are to be found."""
    counts = []
    for least in (0.0, 0.3, 0.9):
        drawn = samples({"pasted": 12, "pasted_height": (100.0, 110.0), "min_visible": least})
        targets = [drawn[index][1] for index in range(20)]
        counts.append((sum(len(t.people) for t in targets), sum(len(t.ignored) for t in targets)))
    (all_seen, none_ignored), (some_seen, some_ignored), (few_seen, most_ignored) = counts
    assert all_seen > some_seen > few_seen > 0
    assert none_ignored < some_ignored < most_ignored


def test_sizes_change_by_batch_and_scale_what_is_shown() -> None:
    drawn = samples({"sizes": (96, 128, 192), "pasted": 1, "pasted_height": (40.0, 40.001)})
    sides = [drawn[index][0].shape[0] for index in range(48)]
    assert all(len(set(sides[start : start + 4])) == 1 for start in range(0, 48, 4))
    assert set(sides) == {96, 128, 192}
    for index in range(48):
        _, target = drawn[index]
        for x1, y1, x2, y2 in target.people.tolist():
            if min(x1, y1) > 0 and max(x2, y2) < sides[index]:
                assert y2 - y1 == pytest.approx(40 * sides[index] / SIDE, abs=2)


def test_the_last_share_of_the_schedule_is_plain() -> None:
    """Mosaics and mixtures of a white picture show grey between or below; a plain sample of its size is white."""
    white = Picture(np.full((SIDE, SIDE, 3), 255, np.uint8), NOTHING, NOTHING, True, 1.0)
    source = CocoSet("drawn", make_skeleton("drawn", ["nose"], []), ())
    options = DetectionAugmentation(
        size=SIDE, colour=0.0, mosaic=1.0, mosaic_scale=(0.2, 0.21), mixup=1.0, scale=(1.0, 1.001), plain_last=0.25
    )
    drawn = DetectionDataset([(source, [partial(copy.copy, white)])], options, 0, 100)
    plain = [bool((drawn[index][0] == 255).all()) for index in range(100)]
    assert plain == [False] * 75 + [True] * 25
