"""If these fail, published HRNet weights and figures no longer describe this network."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from training.initialisation import load_backbones
from training.networks.hrnet import HRNet, HRNetBackbone, HRNetConfig
from training.networks.registry import network_config


def tiny() -> HRNet:
    torch.manual_seed(0)
    return HRNet(4, ("large", "small"), width=8, stem=8, blocks=1, modules=(1, 1, 1))


@pytest.mark.parametrize(("width", "millions", "published"), [(32, 28.54, 7.1), (48, 63.60, 14.6)])
def test_size_and_cost_are_the_published_ones(width: int, millions: float, published: float) -> None:
    with torch.device("meta"):
        network = HRNet(17, width=width).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, 3, 256, 192))
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    # The published code divides by 2^30, not 10^9.
    assert counter.get_total_flops() / 2 / 2**30 == pytest.approx(published, abs=0.05)


def test_state_dict_has_the_published_names() -> None:
    with torch.device("meta"):
        names = {name: tuple(value.shape) for name, value in HRNet(17).state_dict().items()}
    # Written down from the published layout: a sample of every kind of module.
    published = {
        "conv1.weight": (64, 3, 3, 3),
        "bn2.running_var": (64,),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer1.3.conv3.weight": (256, 64, 1, 1),
        "transition1.0.0.weight": (32, 256, 3, 3),
        "transition1.1.0.0.weight": (64, 256, 3, 3),
        "transition2.2.0.1.bias": (128,),
        "transition3.3.0.0.weight": (256, 128, 3, 3),
        "stage2.0.branches.1.3.bn2.weight": (64,),
        "stage2.0.fuse_layers.0.1.0.weight": (32, 64, 1, 1),
        "stage3.3.fuse_layers.2.0.0.0.weight": (32, 32, 3, 3),
        "stage3.3.fuse_layers.2.0.1.0.weight": (128, 32, 3, 3),
        "stage4.2.fuse_layers.0.3.1.running_mean": (32,),
        "final_layer.weight": (17, 32, 1, 1),
    }
    assert {name: names.get(name) for name in published} == published
    assert not any(name.startswith("stage4.2.fuse_layers.1") for name in names)  # the last module has one output
    assert {name.split(".")[0] for name in names} == {
        "conv1", "bn1", "conv2", "bn2", "layer1", "transition1", "stage2", "transition2", "stage3", "transition3",
        "stage4", "final_layer",
    }  # fmt: skip


def test_one_map_for_each_head_and_joint_and_gradient_everywhere() -> None:
    network = tiny()
    maps = network(torch.randn(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(2, 2, 4, 16, 24)]
    maps[0].square().sum().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


def test_the_coarsest_branch_reaches_the_map() -> None:
    network = tiny().eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        whole = network(images)[0]
        network.get_parameter("stage4.0.fuse_layers.0.3.0.weight").zero_()
        assert float((network(images)[0] - whole).abs().max()) > 0


def test_imagenet_weights_are_taken_by_name(tmp_path: Path) -> None:
    torch.manual_seed(1)
    backbone = HRNetBackbone(8, stem=8, blocks=1, modules=(1, 1, 1))
    torch.save({**backbone.state_dict(), "classifier.weight": torch.ones(1000, 64)}, tmp_path / "imagenet.pth")
    network = tiny()
    head = network.final_layer.weight.clone()
    loaded, total = load_backbones(network, tmp_path / "imagenet.pth")
    assert loaded == len(backbone.state_dict()) == total - 2
    for name, value in backbone.state_dict().items():
        assert bool((network.state_dict()[name] == value).all()), name
    assert bool((network.final_layer.weight == head).all())
    with torch.no_grad():
        images = torch.randn(1, 3, 64, 64)
        features = backbone.eval()(images)
        torch.testing.assert_close(network.eval()(images)[0].flatten(1, 2), network.final_layer(features))


def test_recipe_names_it_and_refuses_impossible_widths() -> None:
    config = network_config({"name": "hrnet", "width": 48})
    assert isinstance(config, HRNetConfig) and config.width == 48 and config.multiple == 32
    with pytest.raises(ValueError, match="modules"):
        network_config({"name": "hrnet", "modules": [1, 0, 1]})
