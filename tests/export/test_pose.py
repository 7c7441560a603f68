"""If these fail, the graphs answer other joints than the trained network, or the wrong joints under a name."""

import numpy as np
import pytest
import torch
from torch import Tensor

from export.pose import FlipAverage, PoseFusion, PoseMirror
from export.trunks import InferenceTrunk
from service.skeletons import COCO17, LSP14, UNION19, Skeleton
from training.networks.base import normalise
from training.targets import gaussian_maps

from .conftest import pose_recipe, random_pose_network


@pytest.mark.parametrize(
    "network",
    [
        {"stacks": 1, "width": 16, "dense": True},
        {"stacks": 3, "width": 16, "growth": 8, "dense": True},
        {"stacks": 2, "width": 32},
    ],
)
def test_folded_trunk_draws_the_trained_networks_maps(network: dict[str, int | bool]) -> None:
    recipe = pose_recipe(network=network)
    trained = random_pose_network(recipe)
    crops = torch.randint(0, 256, (3, 128, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = trained(normalise(crops))[-1]
        found = InferenceTrunk(trained)(crops)
    assert found.shape == (3, 3, 19, 32, 16)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_folding_leaves_the_trained_network_as_it_was() -> None:
    trained = random_pose_network(pose_recipe())
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    InferenceTrunk(trained)
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("preset", [COCO17, LSP14])
def test_fusion_answers_each_joint_of_the_preset_by_its_name(preset: Skeleton) -> None:
    rng = np.random.default_rng(1)
    points = {joint: rng.uniform(2.5, 12.5, 2) for joint in UNION19.joints}  # heatmap cells
    maps = draw(points)
    found = PoseFusion(UNION19, preset, stride=4)([maps, maps], torch.ones(1, 2))
    expected = np.array([(points[joint] + 0.5) * 4 - 0.5 for joint in preset.joints])
    np.testing.assert_allclose(found[0, :, :2], expected, atol=0.02)


def test_fusion_refuses_a_preset_with_joints_that_the_trunk_lacks() -> None:
    with pytest.raises(ValueError, match="coco17 lacks joints of lsp14"):
        PoseFusion(COCO17, LSP14, stride=4)


def test_flip_average_of_true_maps_changes_nothing() -> None:
    rng = np.random.default_rng(2)
    points = {joint: rng.uniform(2.5, 12.5, 2) for joint in UNION19.joints}
    # The same person in the mirror: x becomes 15 - x on a map 16 wide, left and right change their names.
    partners = {joint: UNION19.joints[UNION19.flip_permutation[k]] for k, joint in enumerate(UNION19.joints)}
    mirrored = {partners[joint]: np.array([15 - x, y]) for joint, (x, y) in points.items()}
    (found,) = FlipAverage(UNION19)([draw(points)], [draw(mirrored)])
    torch.testing.assert_close(found, draw(points))


def test_mirror_turns_columns_only() -> None:
    crops = torch.randint(0, 256, (2, 6, 4, 3), dtype=torch.uint8)
    np.testing.assert_array_equal(PoseMirror()(crops).numpy(), crops.numpy()[:, :, ::-1])


def draw(points: dict[str, np.ndarray]) -> Tensor:
    where = torch.tensor(np.array([points[joint] for joint in UNION19.joints]), dtype=torch.float32)
    return gaussian_maps(where[None], (16, 16), 1.5)
