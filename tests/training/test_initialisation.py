"""If these fail, a run starts from other weights than its recipe says, and nobody notices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import resnet50

from training.initialisation import InitialisationError, gaussian_, load_backbones, load_matching, load_wider
from training.networks.base import PoseNet
from training.networks.hourglass import HourglassConfig
from training.networks.mspn import MSPNConfig
from training.networks.registry import NETWORKS
from training.networks.simple_baseline import SimpleBaselineConfig

SLIM = HourglassConfig(stacks=1, width=16, dense=True)


def test_gaussian_weights_have_the_deviation_asked_for() -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Conv2d(64, 128, 3), nn.ConvTranspose2d(64, 32, 4, stride=2), nn.BatchNorm2d(32))
    gaussian_(wide, 2**0.5)
    for weight, inputs in ((wide[0].weight, 64 * 9), (wide[1].weight, 64 * 4)):
        assert isinstance(weight, torch.Tensor)
        assert float(weight.detach().std()) == pytest.approx((2 / inputs) ** 0.5, rel=0.02)
        # A Gaussian's fourth moment is 3; the uniform start's is 1.8.
        assert float((weight.detach() / weight.detach().std()).pow(4).mean()) == pytest.approx(3, abs=0.1)
    assert (wide[2].weight == 1).all()


def test_the_hourglass_starts_gaussian() -> None:
    torch.manual_seed(0)
    weight = HourglassConfig(stacks=1).build(17, ["medium"]).features[0][0].body[5].weight.detach()  # type: ignore
    assert float((weight / weight.std()).pow(4).mean()) == pytest.approx(3, abs=0.2)


def test_a_checkpoint_is_matched_by_name_and_shape(tmp_path: Path) -> None:
    trained = SLIM.build(17, ["medium"])
    torch.save({"kind": "pose", "recipe": {}, "weights": trained.state_dict()}, tmp_path / "model.pt")
    same, other = SLIM.build(17, ["medium"]), SLIM.build(14, ["medium"])
    assert load_matching(same, tmp_path / "model.pt") == (len(trained.state_dict()),) * 2
    assert all(torch.equal(v, same.state_dict()[k]) for k, v in trained.state_dict().items())
    fitted, total = load_matching(other, tmp_path / "model.pt")
    assert total - fitted == 2  # the head's weight and bias
    torch.save({"weights": {"x": torch.zeros(1)}}, tmp_path / "strange.pt")
    with pytest.raises(InitialisationError, match=r"strange\.pt: no tensor fits"):
        load_matching(same, tmp_path / "strange.pt")
    (tmp_path / "broken.pt").write_bytes(b"no weights")
    with pytest.raises(InitialisationError, match=r"broken\.pt"):
        load_matching(same, tmp_path / "broken.pt")
    with pytest.raises(InitialisationError, match=r"nowhere\.pt"):
        load_matching(same, tmp_path / "nowhere.pt")


def baseline(width: int, joints: int = 17) -> PoseNet:
    config = SimpleBaselineConfig(backbone="light", width=width, deconv_channels=3 * width)
    return config.build(joints, ["large", "small"])


def trained(network: PoseNet) -> PoseNet:
    """Weights and statistics of normalisation that are not those of the start."""
    torch.manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.3)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    nn.init.normal_(network.output.weight, std=0.1)  # type: ignore[arg-type, union-attr]
    return network


@pytest.mark.parametrize("width", [12, 16, 20])
def test_a_wider_network_begins_as_the_narrow_one_and_its_copies_part(width: int, tmp_path: Path) -> None:
    narrow = trained(baseline(8)).eval()
    torch.save({"kind": "pose", "recipe": {}, "weights": narrow.state_dict()}, tmp_path / "model.pt")
    wide = baseline(width)
    count = len(wide.state_dict())
    assert load_wider(wide, tmp_path / "model.pt") == (count, count)
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        expected, found = narrow(images)[-1], wide.eval()(images)[-1]
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
    # One step on any loss: a channel and its copy must not stay the same.
    wide.train()
    wide(images)[-1].square().mean().backward()
    gradient = wide.output.weight.grad  # type: ignore[union-attr]
    first = wide.deconvs[0].weight.grad  # type: ignore[index, union-attr]
    assert isinstance(gradient, torch.Tensor)
    assert isinstance(first, torch.Tensor)
    assert not torch.allclose(first[:, 0], first[:, 24], rtol=1e-2), "channel 24 is the copy of channel 0"


def test_only_a_narrower_network_of_the_same_kind_is_widened(tmp_path: Path) -> None:
    torch.save({"weights": baseline(16).state_dict()}, tmp_path / "wide.pt")
    with pytest.raises(InitialisationError, match=r"wide\.pt: .* cannot become"):
        load_wider(baseline(8), tmp_path / "wide.pt")
    torch.save({"weights": SLIM.build(17, ["medium"]).state_dict()}, tmp_path / "other.pt")
    with pytest.raises(InitialisationError, match=r"other\.pt: lacks"):
        load_wider(baseline(16), tmp_path / "other.pt")
    grouped = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8))
    torch.save({"weights": grouped.state_dict()}, tmp_path / "grouped.pt")
    with pytest.raises(InitialisationError, match="groups"):
        load_wider(grouped, tmp_path / "grouped.pt")
    with pytest.raises(InitialisationError, match=r"nowhere\.pt"):
        load_wider(grouped, tmp_path / "nowhere.pt")


def test_every_stage_gets_the_backbones_weights(tmp_path: Path) -> None:
    """A few ImageNet-like weights, the later layers missing: half or less may be."""
    torch.manual_seed(0)
    weights = resnet50().state_dict()
    torch.save(weights, tmp_path / "r50.pth")
    network = MSPNConfig(stages=2).build(17, ["medium"])
    loaded, total = load_backbones(network, tmp_path / "r50.pth")
    own = [set(encoder.state_dict()) for encoder in network.backbones]
    assert (loaded, total) == (sum(len(names & set(weights)) for names in own), sum(map(len, own)))
    assert "conv1.weight" in own[0] and "conv1.weight" not in own[1]  # the second stage has no stem
    for encoder in network.backbones:
        assert torch.equal(encoder.state_dict()["layer4.2.conv3.weight"], weights["layer4.2.conv3.weight"])
    weights["layer2.0.conv1.weight"] = torch.zeros(3, 3, 1, 1)
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(InitialisationError, match=r"other\.pth: layer2\.0\.conv1\.weight is \[3, 3, 1, 1\]"):
        load_backbones(network, tmp_path / "other.pth")
    torch.save({k: v for k, v in weights.items() if k.startswith("layer1")}, tmp_path / "part.pth")
    with pytest.raises(InitialisationError, match=r"part\.pth: lacks \d+ of \d+ tensors"):
        load_backbones(network, tmp_path / "part.pth")
    with pytest.raises(InitialisationError, match="StackedHourglass has no backbone"):
        load_backbones(SLIM.build(17, ["medium"]), tmp_path / "r50.pth")


@pytest.mark.parametrize("name", ["mspn", "simple_baseline", "cpn"])
def test_the_published_networks_take_torchvisions_weights(name: str, tmp_path: Path) -> None:
    weights = resnet50().state_dict()
    torch.save(weights, tmp_path / "r50.pth")
    network = NETWORKS[name].model_validate({"name": name}).build(17, ["medium"])
    load_backbones(network, tmp_path / "r50.pth")
    backbones = network.backbones
    assert isinstance(backbones, list)
    for backbone in backbones:
        assert torch.equal(backbone.state_dict()["layer3.1.conv2.weight"], weights["layer3.1.conv2.weight"])
