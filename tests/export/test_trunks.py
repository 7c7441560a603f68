"""If these fail, an exported network draws other maps than the trained one, or costs what only training needs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from export.graphs import export_graph
from export.pose import PoseHeads
from export.trunks import InferenceTrunk, fold_normalisation
from tests.training.test_networks import TINY
from training.networks.base import PoseNet, Unit, normalise
from training.networks.registry import NETWORKS, network_config
from training.targets import Radius

RADII = [Radius(name=name, kind="softmax", sigma=sigma) for name, sigma in (("large", 2.0), ("small", 1.0))]


def build(name: str) -> PoseNet:
    torch.manual_seed(0)
    network = network_config({"name": name, **TINY[name]}).build(3, ("large", "small"))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return network.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_trunk_draws_the_last_map_of_every_network(name: str) -> None:
    network = build(name)
    crops = torch.randint(0, 256, (2, 96, 64, 3), dtype=torch.uint8)
    trunk = InferenceTrunk(network)
    with torch.no_grad():
        expected, found = network(normalise(crops))[-1], trunk(crops)
    assert trunk.folded
    assert found.shape == (2, 2, 3, 24, 16)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


class Skipping(PoseNet):
    """The image goes into two layers: its normalisation cannot be folded into one of them."""

    def __init__(self) -> None:
        super().__init__(1, ("one",), [Unit(0, 1)])
        self.near, self.far = nn.Conv2d(3, 1, 4, 4), nn.Conv2d(3, 1, 8, 4, 2)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.split(self.near(images) * self.far(images))]


class Hidden(PoseNet):
    """The image goes into one layer, and is added at the end where no module sees it."""

    def __init__(self) -> None:
        super().__init__(1, ("one",), [Unit(0, 1)])
        self.near = nn.Conv2d(3, 1, 4, 4)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.split(self.near(images) + images[:, :1, ::4, ::4])]


@pytest.mark.parametrize("network", [Skipping(), Hidden()])
def test_networks_that_cannot_be_folded_normalise_in_the_graph(network: PoseNet) -> None:
    crops = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    assert fold_normalisation(network.eval()) is None
    with torch.no_grad():
        torch.testing.assert_close(InferenceTrunk(network)(crops), network(normalise(crops))[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_maps_that_only_supervision_asks_for_are_not_in_the_graph() -> None:
    network = build("mspn")
    crops = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    graph = export_graph(PoseHeads(network, RADII), [crops], ["crops"], ["heatmaps_large", "heatmaps_small"]).graph
    found = sum(node.op_type == "Conv" for node in graph.node)
    layers = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    # Seven of the eight units' heads, each two convolutions.
    assert found == layers - 14
