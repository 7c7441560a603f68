"""Tiny networks with random weights, as training would have written them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from training.detector import DetectorRecipe
from training.networks.base import normalise
from training.networks.faster_rcnn import DetectorNetwork, FasterRcnn
from training.networks.hourglass import StackedHourglass
from training.pose import PoseRecipe, build_pose_network

NOWHERE = [{"annotations": "/nowhere/coco_train.json", "images": "/nowhere/coco_train"}]
RADII = [
    {"name": "large", "kind": "softmax", "sigma": 2.0},
    {"name": "medium", "kind": "softmax", "sigma": 1.5},
    {"name": "small", "kind": "softmax", "sigma": 1.0},
]


def pose_recipe(**changes: Any) -> PoseRecipe:
    fields: dict[str, Any] = {
        "data": NOWHERE,
        "width": 64,
        "height": 128,
        "network": {"stacks": 2, "width": 16, "growth": 8, "dense": True},
        "radii": RADII,
        "presets": ["coco17", "lsp14"],
        "steps": 1,
    }
    return PoseRecipe.model_validate({**fields, **changes})


def random_pose_network(recipe: PoseRecipe, seed: int = 0) -> StackedHourglass:
    """Random, but with batch-norm statistics that fit and maps with distinct peaks, as a trained network has."""
    torch.manual_seed(seed)
    network = build_pose_network(recipe)
    assert isinstance(network, StackedHourglass)
    randomise_norms(network)
    crops = torch.randint(0, 256, (4, recipe.height, recipe.width, 3), dtype=torch.uint8)
    with torch.no_grad():
        for _ in range(30):
            network(normalise(crops))
        spread = network.eval()(normalise(crops))[-1].std()
        # Wider maps saturate when they are served, and cells of the same height have no order; this leaves peaks apart.
        wanted = 1.0 if recipe.radii[0].kind == "softmax" else 0.25
        for layer in network.outputs:
            assert isinstance(layer, nn.Conv2d)
            layer.weight.mul_(wanted / spread)
    return network.eval()


def randomise_norms(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)


@pytest.fixture(scope="session")
def pose_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a pose checkpoint: ``make(seed=0, **recipe changes)`` gives the path of its ``model.pt``."""

    def make(seed: int = 0, **changes: Any) -> Path:
        recipe = pose_recipe(**changes)
        weights = random_pose_network(recipe, seed).state_dict()
        return write_checkpoint(tmp_path_factory.mktemp("pose"), "pose", recipe.model_dump(mode="json"), weights)

    return make


@pytest.fixture(scope="session")
def detector_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = FasterRcnn(DetectorNetwork(width=8, pyramid_channels=8, head_channels=16, input_size=128, proposals=12))
    randomise_norms(network)
    with torch.no_grad():
        for _ in range(30):
            network.features(torch.randint(0, 256, (4, 128, 128, 3), dtype=torch.uint8))
        # Heads start near zero; spread them, so that proposals differ in score and place.
        for layer in (network.rpn_conv, *network.rpn_outputs, network.head_output):
            nn.init.normal_(layer.weight, std=0.2)
    recipe = DetectorRecipe.model_validate(
        {"train": NOWHERE, "network": network.network.model_dump(), "steps": 1, "batch_size": 1}
    )
    folder = tmp_path_factory.mktemp("detector")
    return write_checkpoint(folder, "detector", recipe.model_dump(mode="json"), network.state_dict())


def write_checkpoint(folder: Path, kind: str, recipe: dict[str, Any], weights: dict[str, torch.Tensor]) -> Path:
    path = folder / "model.pt"
    torch.save({"kind": kind, "recipe": recipe, "weights": weights}, path)
    story = {"kind": kind, "commit": "0123456789ab", "hardware": "2 CPU threads", "hours": 1.25, "parameters": 4321}
    path.with_suffix(".json").write_text(json.dumps(story))
    return path
