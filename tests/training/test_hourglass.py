"""If these fail, published hourglass weights and figures no longer describe this network."""

import pytest
import torch

from training.networks.base import normalise
from training.networks.hourglass import StackedHourglass


@pytest.mark.parametrize(("stacks", "millions"), [(1, 3.43), (2, 6.57), (4, 12.86), (8, 25.44)])
def test_full_width_has_the_published_number_of_parameters(stacks: int, millions: float) -> None:
    with torch.device("meta"):
        network = StackedHourglass(16, stacks=stacks)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize("dense", [False, True])
def test_one_map_for_each_stack_head_and_joint(dense: bool) -> None:
    network = StackedHourglass(17, ("large", "small"), stacks=2, width=32, growth=16, dense=dense).eval()
    maps = network(torch.zeros(3, 3, 128, 64))
    assert [tuple(m.shape) for m in maps] == [(3, 2, 17, 32, 16)] * 2


def test_later_stacks_see_earlier_maps() -> None:
    network = StackedHourglass(4, stacks=2, width=16)
    network(torch.randn(2, 3, 64, 64))[-1].sum().backward()
    first = network.outputs[0].weight  # type: ignore[union-attr]
    assert first.grad is not None and float(first.grad.abs().sum()) > 0  # type: ignore[union-attr]


def test_normalise_uses_imagenets_mean_in_rgb_order() -> None:
    crops = torch.tensor([124, 116, 104], dtype=torch.uint8).repeat(1, 2, 2, 1)
    found = normalise(crops)
    assert found.shape == (1, 3, 2, 2)
    assert float(found.abs().max()) < 0.01
