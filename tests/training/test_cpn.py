"""If these fail, CPN is not the published network: its size, its levels, or ImageNet weights that no longer fit."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from training.networks.cpn import CPN, CPNConfig, resize
from training.networks.published import Published
from training.networks.table import measure


def tiny(heads: tuple[str, ...] = ("medium",), joints: int = 3) -> CPN:
    torch.manual_seed(0)
    return CPN(joints, heads, backbone="light", width=8, pyramid_channels=16)


def test_resnet_50_form_has_the_size_of_the_published_model() -> None:
    found = measure(Published("", {"name": "cpn"}))
    # 102 MB of float32 as the paper prints it. Its 6.20 G is less than the layers of its own code come to.
    assert found.parameters * 4 / 2**20 == pytest.approx(102, rel=0.015)
    assert found.macs / 1e9 == pytest.approx(7.23, abs=0.005)


def test_multiply_adds_are_those_counted_by_hand() -> None:
    places = [64 * 48, 32 * 24, 16 * 12, 8 * 6]
    lateral = sum(256 * 2**i * 256 * n for i, n in enumerate(places))
    merge = sum(256 * 256 * n for n in places[:-1])
    heads = sum((256 * 256 + 9 * 256 * 17) * n for n in places)
    bottleneck = 256 * 128 + 9 * 128 * 128 + 128 * 256
    cascades = sum(i * bottleneck * n for i, n in enumerate(places))
    join = (1024 * 128 + 9 * 128 * 128 + 128 * 256 + 1024 * 256 + 9 * 256 * 17) * places[0]
    with torch.device("meta"):
        backbone = torchvision.models.resnet50(weights=None)
    backbone.fc = torch.nn.Identity()
    with FlopCounterMode(display=False) as counter:
        backbone(torch.zeros(1, 3, 256, 192, device="meta"))
    expected = counter.get_total_flops() / 2 + lateral + merge + heads + cascades + join
    assert measure(Published("", {"name": "cpn"})).macs == expected


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 96), (96, 64)])
def test_five_maps_at_stride_4_the_coarsest_level_first(height: int, width: int) -> None:
    network = tiny(("large", "small")).eval()
    with torch.no_grad():
        maps = network(torch.randn(1, 3, height, width))
    assert [tuple(m.shape) for m in maps] == [(1, 2, 3, height // 4, width // 4)] * 5
    assert [(u.stage, u.level, u.levels) for u in network.units] == [
        (0, 0, 4), (0, 1, 4), (0, 2, 4), (0, 3, 4), (1, 0, 1)
    ]  # fmt: skip
    # What each level's own head draws must come out at the level's unit: heads are kept fine to coarse.
    with torch.no_grad():
        for level, head in enumerate(network.global_net.heads):
            head[-1].weight.zero_()  # type: ignore[index]
            head[-1].bias.fill_(level)  # type: ignore[index]
        maps = network(torch.randn(1, 3, height, width))
    assert [float(m.mean()) for m in maps[:4]] == [3, 2, 1, 0]


def test_refine_net_has_as_many_bottlenecks_as_the_level_is_deep() -> None:
    assert [len(cascade) for cascade in tiny().refine_net.cascades] == [0, 1, 2, 3]  # type: ignore[arg-type]


def test_enlarged_levels_keep_their_places() -> None:
    """A map that grows along x must reach stride 4 without a shift: that would move every joint."""
    ramp = torch.arange(2.0).expand(1, 8, 2, 2)  # centres of cells of stride 32 in a 64x64 crop: 15.5 and 47.5
    large = torch.zeros(1, 8, 16, 16)
    row = resize(ramp, large)[0, 0, 0]
    x = (torch.arange(16) + 0.5) * 4 - 0.5
    assert torch.allclose(row, ((x - 15.5) / 32).clamp(0, 1), atol=1e-6)


def test_heads_come_radius_by_radius() -> None:
    network = tiny(("large", "small"), joints=3).eval()
    with torch.no_grad():
        network.refine_net.head.weight.zero_()
        network.refine_net.head.bias.copy_(torch.arange(6.0))  # type: ignore[union-attr]
        last = network(torch.randn(2, 3, 64, 64))[-1]
    assert last[1, :, :, 0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_torchvision_weights_fit_the_backbone() -> None:
    weights = torchvision.models.resnet18(weights=None).state_dict()
    network = CPNConfig(backbone="resnet18").build(3, ("medium",))
    assert isinstance(network, CPN)
    missing, unexpected = network.backbones[0].load_state_dict(weights, strict=False)
    assert (missing, set(unexpected)) == ([], {"fc.weight", "fc.bias"})


def test_light_form_stays_under_one_gmac() -> None:
    fields = {"name": "cpn", "backbone": "light", "pyramid_channels": 64}
    assert 0.3e9 < measure(Published("", fields, joints=19), ("large", "medium", "small")).macs < 1e9
