"""Crops: training, export and serving share this geometry; half a pixel here is half a pixel in every joint."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from service.crops import (
    PADDING,
    box_crop_matrices,
    crop_matrix,
    crop_people,
    crop_to_heatmap,
    heatmap_to_crop,
    invert_affine,
    transform_points,
)
from service.people import keypoints_in_image

SIZE = (96, 128)
coordinates = st.floats(-2000, 2000)
lengths = st.floats(1, 3000)
angles = st.floats(-180, 180)


@given(st.floats(-500, 500), st.sampled_from([2, 4, 8]))
def test_heatmap_cells_and_crop_pixels_are_inverse(value: float, stride: int) -> None:
    assert crop_to_heatmap(heatmap_to_crop(value, stride), stride) == pytest.approx(value, abs=1e-9)
    assert heatmap_to_crop(value, stride) == pytest.approx(stride * value + (stride - 1) / 2, abs=1e-9)


@pytest.mark.parametrize("stride", [2, 4])
def test_a_mirrored_crop_gives_a_mirrored_heatmap_without_shift(stride: int) -> None:
    """The reason for the convention: x -> W - 1 - x in the crop is h -> W / stride - 1 - h in the heatmap."""
    width = 96
    pixels = np.linspace(-3, width + 3, 50)
    mirrored = crop_to_heatmap(width - 1 - pixels, stride)
    assert np.allclose(mirrored, width / stride - 1 - crop_to_heatmap(pixels, stride))


@given(coordinates, coordinates, lengths, lengths, angles, st.integers(0, 2**32 - 1))
def test_a_crop_and_its_inverse_are_nothing(
    x: float, y: float, width: float, height: float, rotation: float, seed: int
) -> None:
    matrix = crop_matrix((x, y), (width, height), SIZE, rotation)
    points = np.random.default_rng(seed).uniform(-100, 200, (5, 2))
    back = transform_points(invert_affine(matrix), transform_points(matrix, points))
    assert np.allclose(back, points, atol=1e-6)
    many = np.stack([matrix, crop_matrix((0, 0), (50, 50), SIZE)])
    in_crop = np.concatenate([np.stack([transform_points(m, points) for m in many]), np.ones((2, 5, 1))], -1)
    assert np.allclose(keypoints_in_image(in_crop, many)[..., :2], points, atol=1e-6)


@given(coordinates, coordinates, lengths, lengths, angles)
def test_the_centre_comes_to_the_centre_and_shapes_are_kept(
    x: float, y: float, width: float, height: float, rotation: float
) -> None:
    matrix = crop_matrix((x, y), (width, height), SIZE, rotation)
    assert np.allclose(transform_points(matrix, [x, y]), [(SIZE[0] - 1) / 2, (SIZE[1] - 1) / 2], atol=1e-6)
    linear = matrix[:, :2]
    scale = 1 / max(width / SIZE[0], height / SIZE[1])
    assert np.allclose(linear @ linear.T, np.eye(2) * scale**2, rtol=1e-6)
    assert np.linalg.det(linear) > 0, "never a mirror image"


def test_positive_rotation_turns_the_picture_clockwise() -> None:
    """In a picture y points down: what was right of the centre is below it after a quarter turn clockwise."""
    matrix = crop_matrix((50, 50), (96, 128), SIZE, 90)
    right = transform_points(matrix, [60, 50]) - transform_points(matrix, [50, 50])
    assert np.allclose(right, [0, 10])


@given(st.floats(0, 500), st.floats(0, 500), lengths, lengths)
def test_the_padded_box_lies_inside_its_crop(x: float, y: float, width: float, height: float) -> None:
    box = np.array([x, y, x + width, y + height])
    matrix = box_crop_matrices(box, SIZE)[0]
    edges = transform_points(matrix, box.reshape(2, 2) - 0.5) + 0.5
    assert (edges > 0).all()
    assert (edges < SIZE).all()
    filled = (edges[1] - edges[0]) / SIZE
    assert max(filled) == pytest.approx(1 / PADDING), "the box touches the padding on its long side"


def test_degenerate_boxes_still_crop_and_nobody_gives_nothing() -> None:
    matrices = box_crop_matrices([[5, 5, 5, 5], [9, 9, 3, 3]], SIZE)
    assert np.isfinite(matrices).all()
    assert box_crop_matrices(np.zeros((0, 4)), SIZE).shape == (0, 2, 3)
    assert crop_people(np.zeros((9, 9, 3), np.uint8), np.zeros((0, 2, 3)), SIZE).shape == (0, 128, 96, 3)
    with pytest.raises(ValueError, match="positive"):
        crop_matrix((0, 0), (0, 0), SIZE)


def test_a_crop_of_the_whole_picture_at_its_size_is_the_picture() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (128, 96, 3), np.uint8)
    matrix = box_crop_matrices([[0, 0, 96, 128]], SIZE, padding=1.0)
    assert np.allclose(matrix[0], [[1, 0, 0], [0, 1, 0]])
    assert np.array_equal(crop_people(picture, matrix, SIZE)[0], picture)


@settings(max_examples=60)
@given(
    st.integers(60, 900), st.integers(60, 900), st.floats(0.3, 0.7), st.floats(0.3, 0.7), st.floats(0.2, 1.5), angles
)
def test_a_blob_lands_where_its_point_goes(
    width: int, height: int, fx: float, fy: float, zoom: float, rotation: float
) -> None:
    """Pixels and points go the same way, also through the halved pictures that large shrinking samples."""
    extent = (zoom * width, zoom * height)
    x, y = fx * width, fy * height
    matrix = crop_matrix((width / 2, height / 2), extent, SIZE, rotation)
    scale = np.sqrt(np.linalg.det(matrix[:, :2]))
    sigma = max(3.0 / scale, 3.0)
    expected = transform_points(matrix, [x, y])
    margin = 3.5 * sigma * scale
    assume((expected > margin).all() and (expected < np.array(SIZE) - 1 - margin).all())
    assume(min(x, y, width - x, height - y) > 3.5 * sigma)
    ys, xs = np.mgrid[:height, :width]
    blob = 255 * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * sigma**2))
    crop = crop_people(np.repeat(blob[..., None], 3, 2).astype(np.uint8), matrix[None], SIZE)[0, ..., 0].astype(float)
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    measured = np.array([(crop * columns).sum(), (crop * rows).sum()]) / crop.sum()
    assert np.abs(measured - expected).max() < 0.25


def test_outside_the_picture_is_black() -> None:
    picture = np.full((20, 20, 3), 255, np.uint8)
    crop = crop_people(picture, box_crop_matrices([[100, 100, 140, 150]], SIZE), SIZE)
    assert not crop.any()


def test_all_people_of_a_picture_come_in_one_array() -> None:
    picture = np.random.default_rng(3).integers(0, 255, (300, 400, 3), np.uint8)
    matrices = box_crop_matrices([[10, 10, 60, 110], [0, 0, 400, 300], [200, 100, 210, 130]], SIZE)
    together = crop_people(picture, matrices, SIZE)
    assert together.shape == (3, 128, 96, 3)
    assert together.flags.c_contiguous
    for crop, matrix in zip(together, matrices, strict=True):
        assert np.array_equal(crop, crop_people(picture, matrix[None], SIZE)[0])
