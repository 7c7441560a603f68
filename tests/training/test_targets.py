"""If these fail, networks are taught joints in the wrong place: every keypoint served is off by a constant."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.crops import heatmap_to_crop
from training.decoding import decode, fuse
from training.targets import Radius, activate, disc_maps, gaussian_maps, heatmap_points


@given(x=st.floats(0, 47), y=st.floats(0, 63), sigma=st.floats(0.7, 4))
def test_gaussian_is_the_closed_form_in_float64(x: float, y: float, sigma: float) -> None:
    found = gaussian_maps(torch.tensor([[[x, y]]], dtype=torch.float64), (64, 48), sigma)[0, 0].numpy()
    rows, columns = np.mgrid[0:64, 0:48].astype(np.float64)
    expected = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
    np.testing.assert_allclose(found, expected, atol=1e-12)


@given(x=st.floats(0, 47), y=st.floats(0, 63), radius=st.floats(1, 4))
def test_disc_holds_exactly_the_cells_within_its_radius(x: float, y: float, radius: float) -> None:
    found = disc_maps(torch.tensor([[[x, y]]], dtype=torch.float64), (64, 48), radius)[0, 0]
    for row in range(64):
        for column in range(48):
            squared = (column - x) ** 2 + (row - y) ** 2
            if abs(squared - radius**2) > 1e-9:
                assert bool(found[row, column]) == (squared < radius**2)


def test_crop_pixels_and_cells_use_the_one_convention() -> None:
    cells = torch.tensor([[[0.0, 0.0], [47.0, 63.0], [10.25, 7.5]]], dtype=torch.float64)
    pixels = torch.from_numpy(heatmap_to_crop(cells.numpy(), 4))
    assert pixels[0, 0].tolist() == [1.5, 1.5]  # the centre of the first 4x4 block of pixels
    torch.testing.assert_close(heatmap_points(pixels, 4), cells)


@pytest.mark.parametrize("kind", ["gaussian", "disc", "softmax"])
def test_served_heatmaps_are_probabilities_with_peak_near_one(kind: str) -> None:
    radius = Radius(name="r", kind=kind, sigma=2.0)  # type: ignore[arg-type]
    target = gaussian_maps(torch.tensor([[[20.0, 30.0]]]), (64, 48), 2.0)
    if kind == "gaussian":
        raw = target - 0.1
    elif kind == "disc":
        raw = 20 * disc_maps(torch.tensor([[[20.0, 30.0]]]), (64, 48), 2.0) - 10
    else:
        raw = torch.log(target + 1e-12)
    served = activate(raw, radius)
    assert served.dtype == torch.float32
    assert 0 <= float(served.min()) and float(served.max()) <= 1
    assert float(served.max()) == pytest.approx(1.0, abs=0.11)
    assert float(served[0, 0, 30, 20]) == float(served.max())


def test_a_regression_over_its_full_height_keeps_its_place() -> None:
    # Trained by squared error, a sure joint's peak comes out at 1.1 as often as at 0.9, beside negative cells.
    radius = Radius(name="r", kind="gaussian", sigma=2.0)
    points = torch.tensor([[[20.3, 30.6]]])
    served = activate(1.25 * gaussian_maps(points, (64, 48), 2.0) - 0.02, radius)
    assert float(served.min()) == 0
    found = decode(fuse([served], torch.ones(1, 1)), 4)[0, 0]
    np.testing.assert_allclose(found[:2].numpy(), heatmap_to_crop(points[0, 0].numpy(), 4), atol=0.1)
    assert float(found[2]) == 1


def test_softmax_peak_of_a_map_without_a_joint_is_near_zero() -> None:
    radius = Radius(name="r", kind="softmax", sigma=2.0)
    assert float(activate(torch.zeros(1, 1, 64, 48), radius).max()) == pytest.approx(
        2 * math.pi * 4 / (64 * 48), rel=1e-4
    )


@given(x=st.integers(0, 47), y=st.integers(0, 63), sigma=st.floats(0.3, 9))
def test_peak_is_exactly_one_on_a_cell_and_nowhere_else(x: int, y: int, sigma: float) -> None:
    target = gaussian_maps(torch.tensor([[[float(x), float(y)]]]), (64, 48), sigma)[0, 0]
    assert float(target[y, x]) == 1.0
    assert int((target == 1.0).sum()) == 1
