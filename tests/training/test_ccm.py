"""If these fail, the cascaded context mixer is not what the CCM paper describes, or cannot be trained or served."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from export.graphs import export_graph
from training.networks.base import Unit
from training.networks.ccm import DILATIONS, CCMConfig, ContextMixer, ContextMixerNet
from training.networks.registry import network_config
from training.networks.table import measure


def tiny(mixers: int = 3) -> ContextMixerNet:
    torch.manual_seed(0)
    return ContextMixerNet(
        4, ("large", "small"), backbone="light", backbone_width=8, features=12, mixers=mixers, width=16
    )


def lively(network: nn.Module) -> nn.Module:
    """Heads start near zero and norms as if nothing had been seen: make every path count, as after training."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return network


def test_each_unit_is_the_sum_of_the_mixers_so_far() -> None:
    network = lively(tiny()).eval()
    assert isinstance(network, ContextMixerNet)
    drawn: list[Tensor] = []
    for output in network.outputs:
        output.register_forward_hook(lambda _module, _inputs, result: drawn.append(result))
    with torch.no_grad():
        maps = network(torch.randn(2, 3, 64, 96))
    assert network.units == (Unit(0, 3), Unit(1, 3), Unit(2, 3))
    assert [tuple(m.shape) for m in maps] == [(2, 2, 4, 16, 24)] * 3
    for count, found in enumerate(maps, start=1):
        expected = torch.stack(drawn[:count]).sum(0).reshape(2, 2, 4, 16, 24)
        torch.testing.assert_close(found, expected)
        assert float(drawn[count - 1].abs().mean()) > 1e-3


def test_a_later_unit_does_not_reach_back() -> None:
    network = tiny()
    network(torch.randn(2, 3, 64, 64))[0].square().sum().backward()
    for name, parameter in network.named_parameters():
        later = name.startswith(("mixers.1", "mixers.2", "outputs.1", "outputs.2"))
        assert (parameter.grad is None) == later, name


def test_gradient_reaches_everything() -> None:
    network = lively(tiny())
    maps = network(torch.randn(2, 3, 64, 64))
    torch.stack([m.square().sum() for m in maps]).sum().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


def test_mixer_is_skip_plus_dilated_times_excite() -> None:
    mixer = lively(ContextMixer(6, 8)).eval()
    assert isinstance(mixer, ContextMixer)
    x = torch.randn(2, 6, 12, 10)

    def convolved(path: nn.Sequential, dilation: int) -> Tensor:
        convolution, norm = path[0], path[1]
        assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        padding = dilation * (convolution.kernel_size[0] // 2)
        y = nn.functional.conv2d(x, convolution.weight, padding=padding, dilation=dilation)
        scale = norm.weight / torch.sqrt(torch.ones(len(norm.weight)) + norm.eps)
        return torch.relu(y * scale[:, None, None] + norm.bias[:, None, None])

    with torch.no_grad():
        paths = [path for path in mixer.dilated if isinstance(path, nn.Sequential)]
        spatial = torch.cat([convolved(path, d) for path, d in zip(paths, DILATIONS, strict=True)], 1)
        down, up = mixer.excite[1], mixer.excite[3]
        assert isinstance(down, nn.Conv2d) and isinstance(up, nn.Conv2d)
        squeezed = torch.relu(x.mean((2, 3)) @ down.weight[:, :, 0, 0].T + down.bias)
        channels = torch.sigmoid(squeezed @ up.weight[:, :, 0, 0].T + up.bias)
        expected = convolved(mixer.skip, 1) + spatial * channels[:, :, None, None]
        torch.testing.assert_close(mixer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dilation", DILATIONS)
def test_each_dilation_sees_as_far_as_it_says(dilation: int) -> None:
    mixer = lively(ContextMixer(4, 8)).eval()
    assert isinstance(mixer, ContextMixer)
    x = torch.randn(1, 4, 21, 21, requires_grad=True)
    mixer.dilated[DILATIONS.index(dilation)](x)[0, :, 10, 10].sum().backward()
    assert x.grad is not None
    rows = x.grad.abs().sum((0, 1, 3)).nonzero().flatten().tolist()
    assert rows == [10 - dilation, 10, 10 + dilation]


def test_channel_context_is_of_the_whole_crop() -> None:
    mixer = lively(ContextMixer(4, 8)).eval()
    x = torch.zeros(1, 4, 32, 32)
    x[..., 0, 0] = 1.0
    far = x.clone()
    far[..., 31, 31] = 50.0
    with torch.no_grad():
        assert float((mixer(far) - mixer(x))[..., 0, 0].abs().max()) > 0


@pytest.mark.parametrize(
    ("section", "gmacs"),
    [
        ({"name": "ccm", "backbone": "light", "features": 48, "mixers": 2, "width": 48}, 1.0),
        ({"name": "ccm", "backbone": "hrnet_w32"}, 9.0),
    ],
)
def test_cost_at_256x192(section: dict[str, object], gmacs: float) -> None:
    from training.networks.published import Published

    assert measure(Published("ccm", section)).macs / 1e9 < gmacs


@pytest.mark.parametrize("backbone", ["hrnet_w48", "resnet18", "resnet50"])
def test_every_backbone_fits(backbone: str) -> None:
    with torch.device("meta"):
        network = CCMConfig.model_validate({"backbone": backbone}).build(17, ("medium",)).eval()
        maps = network(torch.zeros(1, 3, 256, 192))
    assert [tuple(m.shape) for m in maps] == [(1, 1, 17, 64, 48)] * 3


def test_imagenet_weights_have_a_place_by_name() -> None:
    with torch.device("meta"):
        for backbone, name in (
            ("resnet18", "layer4.1.conv2.weight"),
            ("hrnet_w32", "stage4.2.branches.3.3.conv2.weight"),
        ):
            network = ContextMixerNet(4, backbone=backbone)  # type: ignore[arg-type]
            assert [name in part.state_dict() for part in network.backbones] == [True]


def test_recipe_refuses_widths_that_four_dilations_cannot_share() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        network_config({"name": "ccm", "width": 30})


@pytest.mark.parametrize("backbone", ["light", pytest.param("hrnet_w32", marks=pytest.mark.slow)])
def test_exported_graph_agrees_for_any_batch(backbone: str) -> None:
    torch.manual_seed(1)
    network = lively(
        ContextMixerNet(3, backbone=backbone, backbone_width=8, features=8, mixers=2, width=8)  # type: ignore[arg-type]
        if backbone == "light"
        else tiny_hrnet()
    ).eval()
    model = export_graph(network, [torch.randn(2, 3, 64, 64)], ["images"], ["first", "second"])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, 64, 64]
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        expected = network(images)
    for found, wanted in zip(session.run(None, {"images": images.numpy()}), expected, strict=True):
        scale = max(1.0, float(wanted.abs().max()))
        assert float(np.abs(found - wanted.numpy()).max()) < 1e-4 * scale


def tiny_hrnet() -> ContextMixerNet:
    from training.networks.hrnet import HRNetBackbone

    network = ContextMixerNet(3, backbone="light", backbone_width=8, features=8, mixers=2, width=8)
    network.backbone = HRNetBackbone(8, stem=8, blocks=1, modules=(1, 1, 1))
    return network
