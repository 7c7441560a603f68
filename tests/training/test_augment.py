"""If these fail, augmented crops carry joints in the wrong place: the network is trained on noise."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.crops import box_crop_matrices, crop_people, transform_points
from service.skeletons import COCO17, UNION19
from training.augment import (
    NO_AUGMENTATION,
    NUMBERS,
    Augmentation,
    Looks,
    draw_geometry,
    draw_looks,
    half_body_box,
    mirror_names,
)
from training.batches import PoseBatch
from training.datasets.crops import CropSource
from training.datasets.patches import PatchSize, cut_patches
from training.datasets.union import PoseSample
from training.recolour import recolour

SIZE = (192, 256)
GEOMETRY = Augmentation(colour=0, grey=0, blur=0, erase=0)
CPU = torch.device("cpu")


def _picture(tmp_path: Path, dots: np.ndarray) -> Path:
    """A black picture with one bright dot of known sub-pixel centre for each joint."""
    rows, columns = np.mgrid[0:480, 0:640].astype(np.float64)
    picture = np.zeros((480, 640))
    for x, y in dots:
        picture += 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 4.0**2))
    path = tmp_path / "dots.png"
    cv2.imwrite(str(path), np.clip(picture, 0, 255).astype(np.uint8))
    return path


def _source(samples: list[PoseSample], strength: Augmentation, *, seed: int = 5, resident: bool = False) -> CropSource:
    patches = cut_patches(samples, PatchSize(SIZE, 2.0, 1.25, 1.25), threads=1)
    return CropSource(samples, patches, UNION19, SIZE, strength, seed, CPU, resident=resident)


def _draw(source: CropSource, draws: range) -> PoseBatch:
    return source.batch(np.arange(draws.start, draws.stop), np.zeros(len(draws), np.int64))


@pytest.fixture
def dotted(tmp_path: Path) -> PoseSample:
    """One person whose only labelled joint, a left shoulder, is a bright dot."""
    dot = np.array([[330.3, 210.6]])
    keypoints = np.zeros((19, 3))
    keypoints[5] = [*dot[0], 2]
    return PoseSample(_picture(tmp_path, dot), np.array([220.0, 60.0, 420.0, 400.0]), keypoints, 1e4, "dots")


@pytest.mark.parametrize("resident", [False, True])
def test_joints_stay_on_the_picture_they_were_marked_on(dotted: PoseSample, resident: bool) -> None:
    batch = _draw(_source([dotted], GEOMETRY, resident=resident), range(24))
    names = set()
    for crop, points, labelled in zip(batch.crops, batch.points, batch.labelled, strict=True):
        (joint,) = np.flatnonzero(labelled.numpy())
        bright = crop.numpy()[..., 0].astype(np.float64)
        bright[bright < 20] = 0
        rows, columns = np.mgrid[0 : SIZE[1], 0 : SIZE[0]]
        centre = np.array([(bright * columns).sum(), (bright * rows).sum()]) / bright.sum()
        np.testing.assert_allclose(points.numpy()[joint], centre, atol=0.35)
        names.add(UNION19.joints[joint])
    assert names == {"left_shoulder", "right_shoulder"}


def test_crops_made_on_the_device_are_those_that_serving_makes(tmp_path: Path) -> None:
    """At the picture's border, over it, turned and mirrored: the batched look-up equals OpenCV's, to a grey level."""
    picture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8), (0, 0), 1.5)
    cv2.imwrite(str(tmp_path / "noise.png"), picture)
    boxes = [[20, 30, 160, 290], [-40, -30, 60, 90], [350, 200, 480, 420], [100, 100, 101, 102]]
    samples = [PoseSample(tmp_path / "noise.png", np.array(b, float), np.zeros((19, 3)), 1.0, "x") for b in boxes]
    draws, indices = np.arange(32), np.arange(32) % 4
    host = _source(samples, GEOMETRY).batch(draws, indices).crops.float()
    device = _source(samples, GEOMETRY, resident=True).batch(draws, indices).crops.float()
    difference = (host - device).abs()
    # OpenCV weighs in 32nds of a pixel; on the border between picture and black that is some levels.
    assert difference.mean() < 0.5
    assert (difference > 8).float().mean() < 2e-3
    assert host.std() > 20


def test_without_augmentation_a_crop_is_what_serving_cuts_from_the_whole_picture(tmp_path: Path) -> None:
    picture = cv2.GaussianBlur(np.random.default_rng(1).integers(0, 256, (900, 1200, 3), np.uint8), (0, 0), 9)
    picture = cv2.normalize(picture, np.zeros_like(picture), 0, 255, cv2.NORM_MINMAX)
    cv2.imwrite(str(tmp_path / "large.png"), picture)
    box = np.array([200.3, 110.7, 640.2, 830.1])
    served = crop_people(picture[..., ::-1].copy(), box_crop_matrices(box[None], SIZE), SIZE)[0]
    sample = PoseSample(tmp_path / "large.png", box, np.zeros((19, 3)), 1.0, "x")
    trained = _source([sample], NO_AUGMENTATION).batch(np.zeros(1, np.int64), np.zeros(1, np.int64)).crops[0].numpy()
    assert np.abs(trained.astype(int) - served.astype(int)).mean() < 1.0
    assert served.std() > 20


def test_a_crop_depends_on_seed_draw_and_person_alone(dotted: PoseSample) -> None:
    """Whatever batch it comes in: resuming and several processes rest on it."""
    source = _source([dotted, dotted], Augmentation(blur=0.5))
    whole = source.batch(np.arange(12), np.arange(12) % 2)
    part = source.batch(np.arange(5, 9), np.arange(5, 9) % 2)
    for name in ("crops", "points", "labelled", "areas"):
        torch.testing.assert_close(getattr(part, name), getattr(whole, name)[5:9], rtol=0, atol=0)
    other = _source([dotted, dotted], Augmentation(blur=0.5), seed=6).batch(np.arange(12), np.arange(12) % 2)
    assert not torch.equal(other.crops, whole.crops)


def test_the_area_is_measured_in_crop_pixels(dotted: PoseSample) -> None:
    """Stage-wise hard samples are chosen by an OKS that needs it: a box of 200x340 fills a known part of the crop."""
    batch = _draw(_source([dotted], NO_AUGMENTATION), range(1))
    scale = 256 / (340 * 1.25)
    assert float(batch.areas) == pytest.approx(1e4 * scale**2)


def test_an_empty_crop_says_that_no_joint_is_there(dotted: PoseSample) -> None:
    nobody = PoseSample(dotted.path, dotted.box, dotted.keypoints, 1.0, "x", empty=True, weight=0.5)
    batch = _draw(_source([nobody], Augmentation(half_body=1, half_body_joints=2)), range(4))
    assert (batch.labelled == 0.5).all()
    assert (batch.present == 0).all()
    person = _draw(_source([dotted], GEOMETRY), range(4))
    assert (person.present == person.labelled).all()
    assert (person.labelled.sum(1) == 1).all()


def test_a_joint_outside_its_crop_does_not_count(dotted: PoseSample) -> None:
    keypoints = dotted.keypoints.copy()
    keypoints[9] = [600.0, 210.0, 2]
    sample = PoseSample(dotted.path, dotted.box, keypoints, 1e4, "x")
    batch = _draw(_source([sample], NO_AUGMENTATION), range(1))
    assert batch.labelled[0].nonzero().flatten().tolist() == [5]


def test_mirroring_swaps_left_and_right() -> None:
    keypoints = np.random.default_rng(0).uniform(0, 190, (2, 17, 2))
    named = mirror_names(keypoints, np.array([False, True]), COCO17)
    left, right = COCO17.joints.index("left_wrist"), COCO17.joints.index("right_wrist")
    np.testing.assert_array_equal(named[0], keypoints[0])
    np.testing.assert_array_equal(named[1, left], keypoints[1, right])
    np.testing.assert_array_equal(named[1, 0], keypoints[1, 0])
    numbers = np.full((1, NUMBERS), 0.4)
    plain = draw_geometry(np.array([[10.0, 20, 90, 200]]), keypoints[:1], SIZE, COCO17, NO_AUGMENTATION, numbers)[0][0]
    flipped = Augmentation(**{**NO_AUGMENTATION.model_dump(), "flip": 0.5})
    matrix, mirrored = draw_geometry(np.array([[10.0, 20, 90, 200]]), keypoints[:1], SIZE, COCO17, flipped, numbers)
    assert mirrored.all()
    at, there = transform_points(matrix[0], [[30.0, 40.0]])[0], transform_points(plain, [[30.0, 40.0]])[0]
    np.testing.assert_allclose(at, [191 - there[0], there[1]])


@given(seed=st.integers(0, 2**32 - 1))
def test_without_rotation_a_crop_only_scales_and_shifts(seed: int) -> None:
    box = np.array([[100.0, 50.0, 200.0, 300.0]])
    plain = Augmentation(rotation=0, half_body=0, flip=0)
    numbers = np.random.default_rng(seed).random((1, NUMBERS))
    (matrix,), _ = draw_geometry(box, np.zeros((1, 17, 3)), SIZE, COCO17, plain, numbers)
    assert matrix[0, 1] == 0
    assert matrix[0, 0] == pytest.approx(matrix[1, 1])
    inside = transform_points(matrix, [[149.5, 174.5]])[0]  # the box's centre stays near the crop's
    assert (np.abs(inside - [95.5, 127.5]) < [40, 40]).all()
    # The box is 250 high, the crop 256 for 1.25 boxes, times 0.7 to 1.3.
    assert 256 / (250 * 1.25 * 1.3) <= matrix[0, 0] * 1.000001
    assert matrix[0, 0] <= 256 / (250 * 1.25 * 0.7) * 1.000001


def test_widening_makes_the_person_smaller() -> None:
    box, numbers = np.array([[0.0, 0, 30, 400]]), np.full((1, NUMBERS), 0.5)
    wide = Augmentation(**{**NO_AUGMENTATION.model_dump(), "widen": (0.6, 0.8)})
    scales = [
        draw_geometry(box, np.zeros((1, 17, 3)), SIZE, COCO17, s, numbers)[0][0, 0, 0] for s in (NO_AUGMENTATION, wide)
    ]
    assert scales[0] / scales[1] == pytest.approx(1.4)


def test_half_body_keeps_the_chosen_half_inside() -> None:
    keypoints = np.array([[100 + 3 * k, 50 + 20 * k, 2] for k in range(17)], np.float64)
    seen = set()
    for number in (0.1, 0.5, 0.7, 0.9):
        box = half_body_box(np.array([0.0, 0, 300, 500]), keypoints, COCO17, 8, number)
        inside = [(box[:2] <= p[:2]).all() and (p[:2] <= box[2:]).all() for p in keypoints]
        seen.add("upper" if inside[0] else "lower")
        assert all(inside[:11]) if inside[0] else all(inside[11:])
    assert seen == {"upper", "lower"}


def test_recolour_leaves_the_average_look_alone() -> None:
    crops = torch.tensor((200, 120, 40), dtype=torch.uint8).expand(400, 8, 8, 3)
    looks = draw_looks((8, 8), Augmentation(blur=0, erase=0), np.random.default_rng(0).random((400, NUMBERS)))
    changed = recolour(crops, looks)
    np.testing.assert_allclose(changed[:, 0, 0].double().mean(0).numpy(), (200, 120, 40), atol=14)
    assert changed[:, 0, 0].double().std(0).min() > 5
    grey = draw_looks((8, 8), Augmentation(grey=1, colour=0.0), np.random.default_rng(0).random((4, NUMBERS)))
    assert recolour(crops[:4], grey)[0, 0, 0].unique().numel() == 1


def test_blur_and_erasing_reach_only_the_crops_they_were_drawn_for() -> None:
    crops = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 48, 3), np.uint8))
    erased = np.array([[0, 0, 0, 0], [0, 0, 0, 0], [5, 10, 25, 40]])
    looks = Looks(None, np.array([0, 1.4, 0], np.float32), erased, np.array([[1, 2, 3]] * 3, np.uint8))
    changed = recolour(crops, looks)
    assert torch.equal(changed[0], crops[0])
    expected = cv2.GaussianBlur(crops[1].numpy(), (0, 0), 1.4)
    assert np.abs(changed[1].numpy().astype(int) - expected.astype(int)).max() <= 2
    assert (changed[2, 10:40, 5:25] == torch.tensor([1, 2, 3], dtype=torch.uint8)).all()
    outside = torch.ones(64, 48, dtype=torch.bool)
    outside[10:40, 5:25] = False
    assert torch.equal(changed[2][outside], crops[2][outside])
