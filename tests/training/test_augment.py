"""If these fail, augmented crops carry joints in the wrong place: the network is trained on noise."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.crops import transform_points
from service.skeletons import COCO17, UNION19
from training.augment import Augmentation, half_body_box, mirror, random_crop_matrix, recolour
from training.datasets.crops import CropDataset, RepeatSampler
from training.datasets.union import PoseSample

SIZE = (192, 256)
GEOMETRY = Augmentation(colour=0, grey=0, blur=0, erase=0)


def _picture(tmp_path: Path, dots: np.ndarray) -> Path:
    """A black picture with one bright dot of known sub-pixel centre for each joint."""
    rows, columns = np.mgrid[0:480, 0:640].astype(np.float64)
    picture = np.zeros((480, 640))
    for x, y in dots:
        picture += 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 4.0**2))
    path = tmp_path / "dots.png"
    cv2.imwrite(str(path), np.clip(picture, 0, 255).astype(np.uint8))
    return path


@pytest.mark.parametrize("draw", range(12))
def test_joints_stay_on_the_picture_they_were_marked_on(tmp_path: Path, draw: int) -> None:
    dot = np.array([[330.3, 210.6]])
    keypoints = np.zeros((19, 3))
    keypoints[5] = [*dot[0], 2]  # left shoulder
    sample = PoseSample(_picture(tmp_path, dot), np.array([220.0, 60.0, 420.0, 400.0]), keypoints, 1e4, "dots")
    crop, points, labelled = CropDataset([sample], UNION19, SIZE, GEOMETRY, seed=5)[draw, 0]
    (joint,) = np.flatnonzero(labelled.numpy())
    bright = crop.numpy()[..., 0].astype(np.float64)
    bright[bright < 20] = 0
    rows, columns = np.mgrid[0 : SIZE[1], 0 : SIZE[0]]
    centre = np.array([(bright * columns).sum(), (bright * rows).sum()]) / bright.sum()
    np.testing.assert_allclose(points.numpy()[joint], centre, atol=0.35)
    assert UNION19.joints[joint] in ("left_shoulder", "right_shoulder")


def test_mirroring_swaps_left_and_right_and_is_its_own_inverse() -> None:
    rng = np.random.default_rng(0)
    crop = rng.integers(0, 256, (256, 192, 3), np.uint8)
    keypoints = np.concatenate([rng.uniform(0, 190, (17, 2)), np.full((17, 1), 2.0)], axis=1)
    mirrored, moved = mirror(crop, keypoints, COCO17)
    left, right = COCO17.joints.index("left_wrist"), COCO17.joints.index("right_wrist")
    np.testing.assert_allclose(moved[left], [191 - keypoints[right, 0], keypoints[right, 1], 2])
    back, there = mirror(mirrored, moved, COCO17)
    np.testing.assert_array_equal(back, crop)
    np.testing.assert_allclose(there, keypoints)


@given(seed=st.integers(0, 2**32 - 1))
def test_without_rotation_a_crop_only_scales_and_shifts(seed: int) -> None:
    box = np.array([100.0, 50.0, 200.0, 300.0])
    plain = Augmentation(rotation=0, half_body=0)
    matrix, _ = random_crop_matrix(box, np.zeros((17, 3)), SIZE, COCO17, plain, np.random.default_rng(seed))
    assert matrix[0, 1] == 0
    assert matrix[0, 0] == pytest.approx(matrix[1, 1])
    inside = transform_points(matrix, [[149.5, 174.5]])[0]  # the box's centre stays near the crop's
    assert (np.abs(inside - [95.5, 127.5]) < [40, 40]).all()


def test_half_body_keeps_the_chosen_half_inside() -> None:
    keypoints = np.array([[100 + 3 * k, 50 + 20 * k, 2] for k in range(17)], np.float64)
    seen = set()
    for seed in range(20):
        box = half_body_box(np.array([0.0, 0, 300, 500]), keypoints, COCO17, 8, np.random.default_rng(seed))
        inside = [(box[:2] <= p[:2]).all() and (p[:2] <= box[2:]).all() for p in keypoints]
        seen.add("upper" if inside[0] else "lower")
        assert all(inside[:11]) if inside[0] else all(inside[11:])
    assert seen == {"upper", "lower"}


def test_recolour_leaves_the_average_look_alone() -> None:
    crop = np.full((64, 64, 3), (200, 120, 40), np.uint8)
    strength = Augmentation(colour=0.4, grey=0, blur=0, erase=0)
    means = np.mean([recolour(crop.copy(), strength, np.random.default_rng(s))[0, 0] for s in range(400)], axis=0)
    np.testing.assert_allclose(means, (200, 120, 40), atol=14)
    assert recolour(crop, strength, np.random.default_rng(0)).dtype == np.uint8


def test_sampler_is_the_same_stream_wherever_it_is_resumed() -> None:
    repeats = [1.0, 3.0, 0.5]
    whole = RepeatSampler(repeats, seed=4).take(40_000)
    assert RepeatSampler(repeats, seed=4, start=17_000).take(100) == whole[17_000:17_100]
    counts = np.bincount([index for _, index in whole], minlength=3) / len(whole)
    np.testing.assert_allclose(counts, np.array(repeats) / 4.5, atol=0.02)
