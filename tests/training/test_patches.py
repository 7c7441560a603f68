"""If these fail, a run decodes pictures again and again, fills the memory unnoticed, or trains on shifted people."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

import training.datasets.patches as patches_module
from service.crops import transform_points
from training.augment import NO_AUGMENTATION, Augmentation
from training.datasets.coco import DatasetError
from training.datasets.patches import PatchSize, cut_patch, cut_patches
from training.datasets.union import PoseSample
from training.draws import SampleStream, uniforms
from training.pose_recipe import PoseRecipe

SIZE = PatchSize(crop=(48, 64), reach=2.0, detail=1.25, padding=1.25)


@pytest.fixture
def people(tmp_path: Path) -> list[PoseSample]:
    """Five people in two pictures, in no order."""
    for name in "ab":
        picture = np.random.default_rng(ord(name)).integers(0, 256, (90, 120, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture)
    boxes = [[10, 10, 40, 60], [50, 20, 110, 88], [0, 0, 120, 90], [100, 70, 140, 120], [300, 300, 310, 330]]
    files = ["a", "b", "a", "b", "a"]
    return [
        PoseSample(tmp_path / f"{f}.png", np.array(b, float), np.zeros((19, 3)), 1.0, "x")
        for f, b in zip(files, boxes, strict=True)
    ]


def test_a_patch_keeps_points_where_they_were() -> None:
    """A large picture is shrunk: the dot must be where the affine says, to a tenth of a pixel."""
    rows, columns = np.mgrid[0:800, 0:1000].astype(np.float64)
    picture = 255 * np.exp(-((columns - 431.3) ** 2 + (rows - 377.8) ** 2) / (2 * 12.0**2))
    image = np.repeat(picture.astype(np.uint8)[:, :, None], 3, axis=2)
    patch, (scale, offset) = cut_patch(image, np.array([331.0, 228, 531, 528]), SIZE)
    bright = patch[..., 0].astype(np.float64)
    rows, columns = np.mgrid[0 : patch.shape[0], 0 : patch.shape[1]]
    centre = np.array([(bright * columns).sum(), (bright * rows).sum()]) / bright.sum()
    np.testing.assert_allclose(np.array([431.3, 377.8]) * scale + offset, centre, atol=0.1)
    # Two boxes; a box is 1 / 1.25 of the crop's 64 rows, each kept as 1.25.
    assert patch.shape[0] == pytest.approx(64 * 1.25 * 2.0 / 1.25, abs=2)


def test_a_small_person_is_kept_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    patch, (scale, offset) = cut_patch(image, np.array([50.0, 40, 62, 56]), SIZE)
    np.testing.assert_array_equal(scale, 1)
    x, y = (-offset).astype(int)
    np.testing.assert_array_equal(patch, image[y : y + patch.shape[0], x : x + patch.shape[1]])
    assert (x, y) == (44, 32)
    assert patch.shape == (32, 24, 3)


def test_patches_do_not_depend_on_threads_or_on_where_they_lie(people: list[PoseSample], tmp_path: Path) -> None:
    one = cut_patches(people, SIZE, threads=1)
    counted: list[int] = []
    many = cut_patches(people, SIZE, threads=4, done=counted.append)
    filed = cut_patches(people, SIZE, threads=2, cache=tmp_path / "cache")
    again = cut_patches(people, SIZE, cache=tmp_path / "cache")
    assert sum(counted) == len(one) == 5
    assert isinstance(again.pixels, np.memmap)
    for index in range(5):
        for other in (many, filed, again):
            np.testing.assert_array_equal(other[index], one[index])
            np.testing.assert_array_equal(other.to_patch[index], one.to_patch[index])
    affine = one.from_patch(np.array([2]))[0]
    np.testing.assert_allclose(
        transform_points(affine, np.array([[7.0, 9.0]]) * one.to_patch[2, 0] + one.to_patch[2, 1]), [[7, 9]]
    )


def test_a_cache_is_not_taken_for_other_pictures(people: list[PoseSample], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = cut_patches(people, SIZE, cache=cache)
    cv2.imwrite(str(people[0].path), np.zeros((91, 120, 3), np.uint8))
    second = cut_patches(people, SIZE, cache=cache)
    assert first[0].any()
    assert not second[0].any()
    assert len(list(cache.glob("*.bin"))) == 2
    assert not list(cache.glob("*.partial"))


@pytest.mark.parametrize("cached", [False, True])
def test_a_missing_or_broken_picture_is_named_before_training(
    people: list[PoseSample], tmp_path: Path, cached: bool
) -> None:
    cache = tmp_path / "cache" if cached else None
    people[1].path.write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"b\.png"):
        cut_patches(people, SIZE, cache=cache)
    people[1].path.unlink()
    with pytest.raises(DatasetError, match=r"b\.png: missing"):
        cut_patches(people, SIZE, cache=cache)
    assert not cached or not list((tmp_path / "cache").iterdir())


def test_too_little_memory_is_said_before_the_machine_swaps(
    people: list[PoseSample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patches_module, "_free_memory", lambda: 10_000)
    with pytest.raises(DatasetError, match="cache"):
        cut_patches(people, SIZE)


def test_no_more_is_kept_than_crops_can_show() -> None:
    radii = [{"name": "medium", "kind": "softmax", "sigma": 2}]
    data = [{"annotations": "a.json", "images": "a"}]
    recipe = PoseRecipe.model_validate({"data": data, "radii": radii, "steps": 1})
    assert recipe.patch_size(NO_AUGMENTATION).reach == 1.25
    assert recipe.patch_size(Augmentation()).reach == 2.0
    straight = Augmentation(rotation=0, scale=0.2, shift=0.0)
    assert recipe.patch_size(straight).reach == pytest.approx(1.5)


def test_the_stream_is_the_same_wherever_it_is_resumed() -> None:
    repeats = [1.0, 3.0, 0.5]
    whole = SampleStream(repeats, seed=4).take(0, 40_000)
    np.testing.assert_array_equal(SampleStream(repeats, seed=4).take(16_000, 1000), whole[16_000:17_000])
    np.testing.assert_allclose(np.bincount(whole, minlength=3) / 40_000, np.array(repeats) / 4.5, atol=0.02)
    assert not np.array_equal(SampleStream(repeats, seed=5).take(0, 100), whole[:100])
    for wrong in ([], [0.0], [1.0, float("nan")], [-1.0, 2.0]):
        with pytest.raises(ValueError, match="repeats"):
            SampleStream(wrong, seed=0)


def test_random_numbers_are_uniform_and_independent() -> None:
    """Of neighbouring draws, people and seeds: a pattern there would be a pattern in the crops."""
    draws, people = np.arange(20_000), np.arange(20_000) % 7
    numbers = uniforms(3, draws, people, 8)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.stack([np.histogram(column, 20, (0, 1))[0] for column in numbers.T])
    chi = ((counts - 1000) ** 2 / 1000).sum(1)
    assert (chi < 45).all()  # 19 degrees of freedom: beyond 45 once in a thousand
    correlation = np.corrcoef(np.concatenate([numbers.T, np.roll(numbers, 1, 0).T, uniforms(4, draws, people, 8).T]))
    assert np.abs(correlation - np.eye(24)).max() < 0.035
    np.testing.assert_array_equal(uniforms(3, draws[5:9], people[5:9], 8), numbers[5:9])
