"""If these fail, weights trained elsewhere answer joints up to three pixels beside the person."""

import numpy as np
import pytest
import torch
from torch import Tensor

from training.conventions import Convention, cell_offset, flip_shift, unmirrored
from training.decoding import Refinement, decode, fuse
from training.targets import gaussian_maps

STRIDE, WIDTH, HEIGHT = 4, 192, 256
CONVENTIONS: list[Convention] = ["pixel_centre", "msra", "megvii"]
# As published: where a joint at crop pixel x is drawn on average, and by how many crop pixels an average with the
# mirrored map moves it when nothing is shifted.
DRAWN = {"pixel_centre": lambda x: (x + 0.5) / 4 - 0.5, "msra": lambda x: x / 4, "megvii": lambda x: x / 4 - 0.5}
BIAS = {"pixel_centre": 0.0, "msra": -1.5, "megvii": 0.5}


def people(count: int = 200) -> Tensor:
    """Crop pixels [P, 1, 2], double."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 1, 2, generator=generator, dtype=torch.float64) * 120 + 36


def draw(points: Tensor, convention: Convention) -> Tensor:
    return gaussian_maps(DRAWN[convention](points), (HEIGHT // STRIDE, WIDTH // STRIDE), 2.0)


def find(maps: Tensor, convention: Convention, refinement: Refinement) -> Tensor:
    weights = torch.ones(len(maps), 1, dtype=maps.dtype)
    return decode(fuse([maps], weights), STRIDE, refinement, sigma=2.0, convention=convention)[..., :2]


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("refinement", ["taylor", "dark"])
def test_points_drawn_in_a_convention_are_found_where_they_were(convention: Convention, refinement: Refinement) -> None:
    points = people()
    assert (find(draw(points, convention), convention, refinement) - points).abs().max() < 0.05


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("refinement", ["taylor", "dark"])
def test_flip_average_has_no_bias(convention: Convention, refinement: Refinement) -> None:
    points = people()
    straight = draw(points, convention)
    turned = points.clone()
    turned[..., 0] = WIDTH - 1 - turned[..., 0]
    mirrored = draw(turned, convention)
    right = (straight + unmirrored(mirrored, [0], flip_shift(convention, STRIDE))) / 2
    assert (find(right, convention, refinement) - points).abs().max() < 0.05
    # The counterpart: without the shift the known bias is there.
    plain = (straight + unmirrored(mirrored, [0])) / 2
    moved = (find(plain, convention, refinement) - points).mean((0, 1))
    torch.testing.assert_close(moved, torch.tensor([BIAS[convention], 0.0], dtype=moved.dtype), atol=0.02, rtol=0)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_published_decoders_are_the_inverse(convention: Convention) -> None:
    decoder = {"pixel_centre": lambda h: 4 * (h + 0.5) - 0.5, "msra": lambda h: 4 * h, "megvii": lambda h: 4 * h + 2}
    for cell in (0.0, 3.0, 17.25):
        assert (cell - cell_offset(convention, STRIDE)) * STRIDE == pytest.approx(decoder[convention](cell))


@pytest.mark.parametrize("shift", [0.75, -0.25, 1.0, -1.5, 0.0])
def test_shift_is_linear_interpolation(shift: float) -> None:
    maps = torch.rand(2, 2, 3, 9, dtype=torch.float64)
    found = unmirrored(maps, [1, 0], shift).numpy()
    columns = np.arange(9.0)
    for person in range(2):
        for joint in range(2):
            for row in range(3):
                values = maps[person, 1 - joint, row].numpy()[::-1]
                np.testing.assert_allclose(found[person, joint, row], np.interp(columns - shift, columns, values))
