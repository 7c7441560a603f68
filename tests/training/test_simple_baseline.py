"""If these fail, the simple baseline is not the published one, or ImageNet weights no longer fit it."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from training.networks.published import Published
from training.networks.simple_baseline import SimpleBaseline, SimpleBaselineConfig
from training.networks.table import measure


def tiny(heads: tuple[str, ...] = ("medium",), joints: int = 3) -> SimpleBaseline:
    torch.manual_seed(0)
    return SimpleBaseline(joints, heads, backbone="light", width=8, deconv_channels=16)


@pytest.mark.parametrize(
    ("backbone", "millions", "gmacs"), [("resnet50", 34.0, 8.9), ("resnet101", 53.0, 12.4), ("resnet152", 68.6, 15.7)]
)
def test_size_and_work_are_the_published_ones(backbone: str, millions: float, gmacs: float) -> None:
    found = measure(Published("", {"name": "simple_baseline", "backbone": backbone}))
    assert found.parameters / 1e6 == pytest.approx(millions, abs=0.05)
    # The authors' counter multiplies a transposed convolution's kernel at each output place, and has 2^30 for a giga.
    assert found.outputs / 2**30 == pytest.approx(gmacs, abs=0.1)


def test_multiply_adds_of_transposed_convolutions_are_counted_at_their_inputs() -> None:
    found = measure(Published("", {"name": "simple_baseline"}))
    places = [8 * 6, 16 * 12, 32 * 24]
    work = sum(16 * inputs * 256 * n for inputs, n in zip((2048, 256, 256), places, strict=True))
    assert found.outputs - found.macs == 3 * work


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 96), (96, 64)])
def test_one_map_at_stride_4(height: int, width: int) -> None:
    network = tiny(("large", "small")).eval()
    (found,) = network(torch.randn(1, 3, height, width))
    assert tuple(found.shape) == (1, 2, 3, height // 4, width // 4)


def test_heads_come_radius_by_radius() -> None:
    network = tiny(("large", "small")).eval()
    with torch.no_grad():
        network.output.weight.zero_()
        network.output.bias.copy_(torch.arange(6.0))  # type: ignore[union-attr]
        (found,) = network(torch.randn(2, 3, 64, 64))
    assert found[1, :, :, 0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_new_layers_start_as_the_authors_draw_them() -> None:
    network = SimpleBaseline(17, backbone="light", width=8)
    for layer in [m for m in network.deconvs if isinstance(m, nn.ConvTranspose2d)]:
        assert float(layer.weight.detach().std()) == pytest.approx(0.001, rel=0.05)


def test_torchvision_weights_and_features_are_those_of_torchvision() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(weights=None).eval()
    network = SimpleBaselineConfig(backbone="resnet18").build(3, ("medium",)).eval()
    assert isinstance(network, SimpleBaseline)
    missing, unexpected = network.backbones[0].load_state_dict(theirs.state_dict(), strict=False)
    assert (missing, set(unexpected)) == ([], {"fc.weight", "fc.bias"})
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features = network.backbone(images)
        expected = theirs(images)
        found = theirs.fc(features[-1].mean((-2, -1)))
    assert [tuple(f.shape[1:]) for f in features] == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
    torch.testing.assert_close(found, expected)


def test_light_form_stays_under_one_gmac() -> None:
    fields = {"name": "simple_baseline", "backbone": "light", "deconv_channels": 96}
    assert 0.3e9 < measure(Published("", fields, joints=19), ("large", "medium", "small")).macs < 1e9
