"""If these fail, answered joints are off by parts of a pixel, which costs AP at the strict thresholds."""

from typing import get_args

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.decoding import Refinement, decode, filtered, fuse, fused_sigma, gaussian_taps
from training.targets import gaussian_maps

REFINEMENTS: tuple[Refinement, ...] = get_args(Refinement)


@given(x=st.floats(2.5, 44.5), y=st.floats(2.5, 60.5), sigma=st.floats(1, 3))
def test_taylor_step_finds_a_gaussians_exact_centre(x: float, y: float, sigma: float) -> None:
    log_map = gaussian_maps(torch.tensor([[[x, y]]], dtype=torch.float64), (64, 48), sigma).clamp_min(1e-300).log()
    found = decode(log_map, stride=4)[0, 0].numpy()
    # The closed form: the log of a Gaussian is a parabola, so one Newton step is exact.
    np.testing.assert_allclose(found[:2], [4 * (x + 0.5) - 0.5, 4 * (y + 0.5) - 0.5], atol=1e-6)


@given(x=st.integers(0, 47), y=st.integers(0, 63))
def test_peak_on_any_cell_even_the_border(x: int, y: int) -> None:
    log_map = torch.full((1, 1, 64, 48), -20.0, dtype=torch.float64)
    log_map[0, 0, y, x] = -0.5
    found = decode(log_map, stride=4, refinement="none")[0, 0].numpy()
    np.testing.assert_allclose(found, [4 * x + 1.5, 4 * y + 1.5, np.exp(-0.5)])


def test_quarter_step_goes_towards_the_higher_neighbour() -> None:
    log_map = torch.full((1, 1, 8, 8), -9.0)
    log_map[0, 0, 4, 4], log_map[0, 0, 4, 5], log_map[0, 0, 3, 4] = 0.0, -1.0, -2.0
    found = decode(log_map, stride=4, refinement="quarter")[0, 0].tolist()
    assert found[:2] == [4 * 4.25 + 1.5, 4 * 3.75 + 1.5]


def test_fusion_is_the_weighted_product_of_the_maps() -> None:
    generator = np.random.default_rng(0)
    maps = [generator.uniform(0.01, 1, (2, 3, 8, 6)) for _ in range(3)]
    weights = np.array([[1.0, 1.0, 1.0], [2.0, 0.5, 0.0]])
    found = fuse([torch.from_numpy(m) for m in maps], torch.from_numpy(weights)).numpy()
    for person in range(2):
        product = np.prod([m[person] ** w for m, w in zip(maps, weights[person], strict=True)], axis=0)
        np.testing.assert_allclose(np.exp(found[person]), product ** (1 / weights[person].sum()), rtol=1e-10)
        assert (found[person].reshape(3, -1).argmax(1) == product.reshape(3, -1).argmax(1)).all()


def test_one_radius_alone_ignores_the_others() -> None:
    maps = [torch.rand(1, 2, 8, 6, dtype=torch.float64) + 0.01 for _ in range(3)]
    alone = fuse(maps, torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(alone.exp(), maps[1])


def test_score_is_the_fused_peak() -> None:
    maps = [torch.full((1, 1, 8, 6), 0.1) for _ in range(3)]
    for value, heatmap in zip((0.9, 0.8, 0.7), maps, strict=True):
        heatmap[0, 0, 3, 3] = value
    score = float(decode(fuse(maps, torch.ones(1, 3)), 4)[0, 0, 2])
    assert score == pytest.approx((0.9 * 0.8 * 0.7) ** (1 / 3), rel=1e-5)


def test_megvii_step_goes_a_quarter_cell_along_the_line_to_the_second_peak() -> None:
    log_map = torch.full((1, 1, 16, 16), -20.0, dtype=torch.float64)
    # The filter spreads the first blob: its neighbours outweigh the second one unless that is nearly as high.
    log_map[0, 0, 3, 4], log_map[0, 0, 7, 12] = 0.0, np.log(0.9)
    found = decode(log_map, stride=4, refinement="megvii")[0, 0].numpy()
    way = np.array([8, 4]) / np.hypot(8, 4)
    np.testing.assert_allclose(found[:2], 4 * (np.array([4, 3]) + 0.25 * way + 0.5) - 0.5)
    assert found[2] == pytest.approx(1.0), "the score is the unfiltered peak"


def test_megvii_filter_is_opencvs() -> None:
    rng = np.random.default_rng(0)
    heatmap = rng.uniform(0, 1, (12, 10))
    padded = cv2.GaussianBlur(np.pad(heatmap, 10), (5, 5), 0)[10:-10, 10:-10]
    first, second = np.argsort(padded.ravel())[:-3:-1]
    (y, x), (far_y, far_x) = (divmod(int(i), 10) for i in (first, second))
    way = np.array([far_x - x, far_y - y]) / np.hypot(far_x - x, far_y - y)
    found = decode(torch.from_numpy(heatmap)[None, None].log(), stride=1, refinement="megvii")[0, 0].numpy()
    np.testing.assert_allclose(found[:2], np.array([x, y]) + 0.25 * way)


@pytest.mark.parametrize(("sigma", "width"), [(2.0, 11), (3.0, 17)])
def test_dark_filters_as_opencv_does_with_its_kernels(sigma: float, width: int) -> None:
    heatmap = np.random.default_rng(1).uniform(0, 1, (40, 30))
    expected = cv2.GaussianBlur(heatmap, (width, width), sigma, borderType=cv2.BORDER_CONSTANT)
    found = filtered(torch.from_numpy(heatmap)[None, None], gaussian_taps(sigma))[0, 0].numpy()
    assert len(gaussian_taps(sigma)) == width
    np.testing.assert_allclose(found, expected, atol=1e-9)


@given(x=st.floats(8.5, 38.5), y=st.floats(8.5, 54.5), sigma=st.floats(1, 2.5))
def test_dark_finds_a_gaussians_centre(x: float, y: float, sigma: float) -> None:
    log_map = gaussian_maps(torch.tensor([[[x, y]]], dtype=torch.float64), (64, 48), sigma).clamp_min(1e-12).log()
    found = decode(log_map, stride=4, refinement="dark", sigma=sigma)[0, 0].numpy()
    np.testing.assert_allclose(found[:2], [4 * (x + 0.5) - 0.5, 4 * (y + 0.5) - 0.5], atol=0.02)


def test_dark_is_steadier_under_noise_than_the_plain_newton_step() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(100, 1, 2, generator=generator, dtype=torch.float64) * 20 + 12
    maps = gaussian_maps(points, (48, 48), 2.0)
    noisy = (maps + 0.05 * torch.randn(maps.shape, generator=generator, dtype=torch.float64)).clamp_min(1e-12).log()
    wanted = (points + 0.5) * 4 - 0.5
    off = {r: (decode(noisy, 4, r)[..., :2] - wanted).norm(dim=-1).mean() for r in REFINEMENTS}
    assert off["dark"] < 0.5 * off["taylor"], off
    assert off["dark"] < 0.5 * off["quarter"], off


@pytest.mark.parametrize("refinement", REFINEMENTS)
def test_empty_and_border_maps_are_answered_with_numbers(refinement: Refinement) -> None:
    log_map = torch.full((1, 3, 16, 12), float(np.log(1e-12)))
    log_map[0, 1, 0, 0], log_map[0, 2, 15, 11] = 0.0, 0.0
    found = decode(log_map, 4, refinement)[0]
    assert torch.isfinite(found).all()
    assert (found[1, :2] - 1.5).abs().max() <= 1
    assert (found[2, :2] - torch.tensor([45.5, 61.5])).abs().max() <= 1


def test_fused_sigma_is_that_of_the_product() -> None:
    sigmas = [1.0, 1.5, 2.5]
    maps = [gaussian_maps(torch.tensor([[[20.0, 20.0]]], dtype=torch.float64), (41, 41), s) for s in sigmas]
    fused = fuse(maps, torch.ones(1, 3, dtype=torch.float64))[0, 0, 20]
    # The log of a Gaussian: -d^2 / (2 sigma^2) at distance d.
    assert fused_sigma(sigmas) == pytest.approx(float((-0.5 * 9 / (fused[23] - fused[20])).sqrt()))
