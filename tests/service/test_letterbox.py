"""Letterbox: if the way back were off by half a pixel or a rounding, every box of every picture would be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from service.crops import transform_points
from service.letterbox import BLACK, GREY, Letterbox, letterbox

sizes = st.integers(1, 5000)


@given(sizes, sizes, st.integers(32, 1024), st.integers(0, 2**32 - 1))
def test_boxes_come_back(width: int, height: int, side: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, 1, (6, 2, 2)), axis=1).reshape(6, 4) * [width, height, width, height]
    placed = Letterbox.fit(width, height, side)
    inside = placed.boxes_to_letterbox(corners)
    assert (inside <= np.array([placed.inner_width, placed.inner_height] * 2) + 1e-6).all()
    assert np.allclose(placed.boxes_to_image(inside), corners, atol=1e-6 * max(width, height))


@given(sizes, sizes, st.integers(32, 1024))
def test_the_picture_fills_one_side_and_keeps_its_shape(width: int, height: int, side: int) -> None:
    placed = Letterbox.fit(width, height, side)
    assert max(placed.inner_width, placed.inner_height) == side
    exact = np.array([width, height]) * side / max(width, height)
    assert (np.abs([placed.inner_width, placed.inner_height] - np.maximum(exact, 1)) <= 0.5 + 1e-9).all()


@given(sizes, sizes, st.integers(32, 1024))
def test_points_and_edges_agree(width: int, height: int, side: int) -> None:
    """The matrix is for pixel centres, the scale for edges: edge e is the point e - 0.5."""
    placed = Letterbox.fit(width, height, side)
    edges = np.array([[0, 0], [width, height], [width / 3, height / 7]])
    assert np.allclose(transform_points(placed.matrix, edges - 0.5) + 0.5, edges * placed.scale, atol=1e-6)


def test_boxes_are_clipped_to_the_picture() -> None:
    placed = Letterbox.fit(200, 100, 64)
    assert placed.boxes_to_image([[-5, -9, 99, 99]]).tolist() == [[0, 0, 200, 100]]


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (33, 31), (7, 500), (64, 64)])
def test_padding_is_grey_right_and_below(size: tuple[int, int]) -> None:
    picture = np.full((size[1], size[0], 3), 200, np.uint8)
    square, placed = letterbox(picture, 64)
    assert square.shape == (64, 64, 3)
    assert (square[: placed.inner_height, : placed.inner_width] == 200).all()
    assert (square[placed.inner_height :] == GREY).all()
    assert (square[: placed.inner_height, placed.inner_width :] == GREY).all()
    black, _ = letterbox(picture, 64, fill=BLACK)
    assert (black[placed.inner_height :] == 0).all()


def test_writes_into_a_batch() -> None:
    batch = np.zeros((3, 64, 64, 3), np.uint8)
    picture = np.random.default_rng(0).integers(0, 255, (50, 90, 3), np.uint8)
    square, _ = letterbox(picture, 64, out=batch[1])
    assert np.array_equal(batch[1], letterbox(picture, 64)[0])
    assert np.shares_memory(square, batch)
    assert not batch[[0, 2]].any()


def test_shrinking_averages_as_pillows_box_filter() -> None:
    """Sampling would skip pixels; area averaging is what keeps small people."""
    picture = np.random.default_rng(1).integers(0, 255, (256, 512, 3), np.uint8)
    square, placed = letterbox(picture, 128)
    expected = np.asarray(Image.fromarray(picture).resize((128, 64), Image.Resampling.BOX))
    assert np.abs(square[: placed.inner_height].astype(int) - expected).max() <= 1


def area_weights(length: int, target: int) -> np.ndarray:
    """[target, length]: the share of each source pixel in each target pixel, by the overlap of their edges."""
    edges = np.arange(target + 1) * length / target
    pixels = np.arange(length)
    shared = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.clip(shared, 0, None) * target / length


def differences(size: tuple[int, int], side: int) -> np.ndarray:
    """From every pixel by its share, of a smooth random picture; in grey levels."""
    rng = np.random.default_rng(2)
    small = Image.fromarray(rng.integers(0, 255, (60, 90), np.uint8))
    grey = np.asarray(small.resize(size, Image.Resampling.BICUBIC))
    square, placed = letterbox(np.repeat(grey[..., None], 3, 2), side)
    expected = area_weights(size[1], placed.inner_height) @ grey @ area_weights(size[0], placed.inner_width).T
    return np.abs(square[: placed.inner_height, : placed.inner_width, 0] - expected)


@pytest.mark.parametrize("size", [(2016, 1512), (1920, 1080), (1501, 999)])
def test_large_photographs_are_averaged_closely(size: tuple[int, int]) -> None:
    """Halved while they can be, then sampled at twice the size and averaged: close to every pixel by its share."""
    difference = differences(size, 256)
    assert difference.mean() < 1.5
    assert difference.max() <= 10


@pytest.mark.parametrize("size", [(640, 480), (640, 478), (640, 479), (600, 400), (576, 432), (480, 640), (767, 500)])
def test_pictures_of_up_to_twice_the_side_are_averaged_by_rows(size: tuple[int, int]) -> None:
    """Whichever way their rows go: even or odd, shrunk by much or by little."""
    difference = differences(size, 384)
    assert difference.mean() < 2
    assert difference.max() <= 14


@given(st.integers(40, 300), st.integers(40, 300), st.integers(64, 200), st.integers(0, 2**32 - 1))
def test_a_blob_lands_where_the_matrix_says(width: int, height: int, side: int, seed: int) -> None:
    """A smooth blob's centre of mass, measured in the square, is the transformed centre."""
    rng = np.random.default_rng(seed)
    sigma = 0.06 * min(width, height)
    x, y = rng.uniform(0.35, 0.65, 2) * [width, height]
    placed = Letterbox.fit(width, height, side)
    assume(sigma * placed.scale.min() > 1.2)
    ys, xs = np.mgrid[:height, :width]
    blob = 255 * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * sigma**2))
    square, _ = letterbox(np.repeat(blob[..., None], 3, 2).astype(np.uint8), side, fill=BLACK)
    mass = square[..., 0].astype(float)
    rows, columns = np.mgrid[:side, :side]
    measured = np.array([(mass * columns).sum(), (mass * rows).sum()]) / mass.sum()
    assert np.abs(measured - transform_points(placed.matrix, [x, y])).max() < 0.35


def test_impossible_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="0x5"):
        Letterbox.fit(0, 5, 64)
