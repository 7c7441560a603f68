"""If these fail, published hourglass weights and figures no longer describe this network."""

import pytest
import torch
from torch import nn

from training.networks.base import normalise
from training.networks.hourglass import HourglassConfig, StackedHourglass
from training.networks.published import Published
from training.networks.table import measure


@pytest.mark.parametrize(
    ("stacks", "millions", "gmacs"), [(1, 3.43, 3.86), (2, 6.57, 6.25), (4, 12.86, 11.03), (8, 25.44, 20.59)]
)
def test_full_width_has_the_published_size_and_work(stacks: int, millions: float, gmacs: float) -> None:
    found = measure(Published("", {"name": "hourglass", "stacks": stacks}))
    assert (found.parameters / 1e6, found.macs / 1e9) == pytest.approx((millions, gmacs), abs=0.005)


@pytest.mark.parametrize(("size", "gmacs"), [((288, 384), 14.07), ((384, 384), 18.76)])
def test_larger_crops_cost_what_is_known_of_them(size: tuple[int, int], gmacs: float) -> None:
    found = measure(Published("", {"name": "hourglass", "stacks": 2}), size=size)
    assert found.macs / 1e9 == pytest.approx(gmacs, rel=0.001)


@pytest.mark.parametrize(("depth", "height", "width"), [(4, 96, 32), (3, 32, 48), (1, 8, 16)])
def test_crops_of_any_allowed_multiple_come_back_at_stride_4(depth: int, height: int, width: int) -> None:
    config = HourglassConfig(stacks=2, width=16, dense=True, depth=depth)
    assert height % config.multiple == width % config.multiple == 0
    network = config.build(3, ("medium",)).eval()
    assert [tuple(m.shape) for m in network(torch.randn(1, 3, height, width))] == [
        (1, 1, 3, height // 4, width // 4)
    ] * 2


def test_depth_halves_that_many_times() -> None:
    sizes: list[int] = []
    network = StackedHourglass(3, stacks=1, width=16, depth=3)
    for module in network.modules():
        if isinstance(module, nn.MaxPool2d):
            module.register_forward_hook(lambda _, __, out: sizes.append(out.shape[-1]))
    network.eval()(torch.randn(1, 3, 64, 64))
    assert sizes == [16, 8, 4, 2]


def test_any_block_takes_the_residual_blocks_place() -> None:
    made: list[tuple[int, int]] = []

    def block(inputs: int, outputs: int) -> nn.Module:
        made.append((inputs, outputs))
        return nn.Conv2d(inputs, outputs, 3, padding=1)

    network = StackedHourglass(3, stacks=2, width=16, growth=8, depth=2, block=block).eval()
    # Two halvings, 16 -> 24 -> 32 channels: skip, enter and leave for each, the innermost; one after each hourglass.
    hourglass = [(16, 16), (16, 24), (24, 24), (24, 32), (32, 32), (32, 24), (24, 16)]
    assert sorted(made) == sorted([*hourglass, (16, 16)] * 2)
    assert network(torch.randn(1, 3, 32, 32))[-1].shape == (1, 1, 3, 8, 8)


def test_heads_come_radius_by_radius() -> None:
    network = StackedHourglass(3, ("large", "small"), stacks=1, width=16).eval()
    output = network.outputs[0]
    assert isinstance(output, nn.Conv2d) and output.bias is not None
    with torch.no_grad():
        output.weight.zero_()
        output.bias.copy_(torch.arange(6.0))
        (found,) = network(torch.randn(2, 3, 64, 64))
    assert found[1, :, :, 0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


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
