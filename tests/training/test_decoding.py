"""If these fail, answered joints are off by parts of a pixel, which costs AP at the strict thresholds."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.decoding import decode, fuse
from training.targets import gaussian_maps


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
