"""If these fail, MSPN is not the published network, or ImageNet's weights go nowhere."""

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from tests.conftest import ROOT
from tests.training.test_multi_stage import figures
from training.networks.mspn import MSPN, MSPNConfig
from training.pose_recipe import PoseRecipe
from training.recipe import read_recipe


@pytest.mark.parametrize(
    ("stages", "millions", "gmacs", "large"),
    [(1, 25.14, 5.07, 11.41), (2, 56.87, 11.26, 25.34), (3, 88.59, 17.45, 39.27), (4, 120.32, 23.64, 53.20)],
)
def test_size_and_work_are_those_of_the_published_code(
    stages: int, millions: float, gmacs: float, large: float
) -> None:
    assert figures({"name": "mspn", "stages": stages}) == pytest.approx((millions, gmacs), abs=0.006)
    assert figures({"name": "mspn", "stages": stages}, (384, 288))[1] == pytest.approx(large, abs=0.006)


def test_blocks_of_megviis_report_cost_about_what_resnet_101_costs() -> None:
    blocks = {"name": "mspn", "stages": 1}
    _, ours = figures({**blocks, "layers": (4, 8, 16, 3)})
    _, wider = figures({**blocks, "layers": (4, 8, 16, 3), "width": 66})
    _, resnet = figures({**blocks, "layers": (3, 4, 23, 3)})
    assert ours == pytest.approx(resnet, rel=0.05)
    assert wider == pytest.approx(resnet, rel=0.005)


@pytest.mark.parametrize(
    ("fields", "model", "stages"),
    [
        ({"blocks": "bottleneck", "layers": (3, 4, 6, 3)}, torchvision.models.resnet50, 2),
        ({"blocks": "bottleneck", "layers": (3, 4, 23, 3)}, torchvision.models.resnet101, 1),
        ({"blocks": "basic", "layers": (2, 2, 2, 2)}, torchvision.models.resnet18, 1),
    ],
)
def test_torchvision_weights_load_into_every_stage(fields: dict[str, Any], model: Any, stages: int) -> None:
    torch.manual_seed(0)
    resnet: nn.Module = model(weights=None).eval()
    with torch.no_grad():
        for module in resnet.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.1, 0.5)
                module.bias.normal_(0, 0.1)
    network = MSPNConfig(stages=stages, **fields).build(3, ("medium",)).eval()
    assert isinstance(network, MSPN)
    assert len(network.backbones) == stages
    for stage, backbone in enumerate(network.backbones):
        found = backbone.load_state_dict(resnet.state_dict(), strict=False)
        stem = {key for key in resnet.state_dict() if key.startswith(("conv1.", "bn1."))}
        assert set(found.unexpected_keys) == {"fc.weight", "fc.bias"} | (stem if stage else set())
        # The biases torchvision's convolutions lack, and nothing else.
        assert all(key.endswith(".bias") for key in found.missing_keys)
        assert all(float(backbone.state_dict()[key].abs().max()) == 0 for key in found.missing_keys)
        x = torch.randn(2, 3, 64, 64) if stage == 0 else torch.rand(2, 64, 16, 16)
        with torch.no_grad():
            expected = _torchvision_levels(resnet, x, stem=stage == 0)
            for level, features in enumerate(backbone(x)):
                torch.testing.assert_close(features, expected[level])


def _torchvision_levels(resnet: Any, x: Tensor, *, stem: bool) -> list[Tensor]:
    if stem:
        x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(x))))
    levels = []
    for level in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
        x = level(x)
        levels.append(x)
    return levels


def test_gaussian_start_keeps_the_scale_of_features() -> None:
    torch.manual_seed(0)
    network = MSPNConfig(stages=1, blocks="basic", layers=(1, 1, 1, 1), width=16, features=16).build(3, ("medium",))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is not None and float(module.bias.detach().abs().max()) == 0
    weight = network.get_submodule("encoders.0.layer4.0.conv2").weight
    assert isinstance(weight, Tensor)
    # He et al. 2015: variance 2 / (outputs * 3 * 3).
    assert float(weight.detach().std()) == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert float(weight.detach().abs().max()) > 3.5 * float(weight.detach().std()), "not a Gaussian's tail"


@pytest.mark.parametrize("name", ["pose_mspn_small", "pose_rsn_small"])
def test_recipes_for_cpus_stay_under_one_gmac(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONPOSE_DATA", "data")
    recipe = read_recipe(ROOT / "training" / "recipes" / f"{name}.yaml", PoseRecipe)
    heads = [radius.name for radius in recipe.radii]
    _, gmacs = figures(recipe.network.model_dump(), (recipe.height, recipe.width), len(recipe.joints), heads)
    assert gmacs < 1


def test_recipe_has_the_published_schedule_and_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCO", "coco")
    monkeypatch.setenv("WEIGHTS", "weights")
    recipe = read_recipe(ROOT / "training" / "recipes" / "pose_mspn.yaml", PoseRecipe)
    assert recipe.learning_rate == recipe.devices * 5e-4 and recipe.batch == recipe.devices * 32
    factor = [recipe.schedule.factor(step, recipe.steps) for step in (0, 1200, 2400, 49200, 95999)]
    assert factor == pytest.approx([0.1, 0.55, 1, 0.5, 0], abs=2e-5)
    assert recipe.optimiser.kind == "adam" and recipe.weight_decay == 1e-5
    # Standard deviations of cv2.GaussianBlur's windows 15, 11, 9, 7, 5, measured.
    windows = [2.554, 1.952, 1.658, 1.369, 1.000]
    units = recipe.network.build(1, ("small",)).units
    found = [recipe.radii[0].sigma * recipe.supervision.width_factor(unit) for unit in units]
    assert found == pytest.approx(windows[:4] + windows[1:], abs=2e-3)
    assert [recipe.supervision.unit_weight(unit) for unit in units] == [0.25, 0.25, 0.25, 1] * 2
    assert [recipe.supervision.hard_joints_of(unit) for unit in units] == [None, None, None, 8] * 2


def test_recipe_of_megviis_report_judges_every_later_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCO", "coco")
    recipe = read_recipe(ROOT / "training" / "recipes" / "pose_megvii_report.yaml", PoseRecipe)
    assert [recipe.supervision.threshold(stage) for stage in range(3)] == [None, 0.8, 0.6]
    # Gaussian, as the network draws itself.
    assert recipe.gaussian is None and recipe.init is None and recipe.init_backbone is None
