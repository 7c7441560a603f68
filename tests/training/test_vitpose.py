"""If these fail, ViTPose's published weights run otherwise than in ``transformers``, or their maps are read askew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.checkpoints import read_checkpoints
from export.pose import FlipAverage, PoseFusion
from export.trunks import InferenceTrunk
from service.crops import box_crop_matrices, crop_people, invert_affine, transform_points
from service.engines.config import read_repository
from service.skeletons import SKELETONS
from tests.overfitting import Sixteen
from tests.test_every_network import ask, export
from tests.training.published_layouts import rgb
from training.conventions import flip_shift
from training.datasets.coco import read_rgb
from training.networks.base import normalise
from training.networks.registry import network_config
from training.pretrained.checkpoint import import_pose
from training.pretrained.weights import PretrainedError
from training.targets import gaussian_maps

WIDTH, HEIGHT = 96, 128
JOINTS = 17


def model(*, simple: bool = True, experts: int = 1, **changes: Any) -> nn.Module:
    """A small ViTPose with random weights, biases and positions."""
    from transformers import VitPoseConfig, VitPoseForPoseEstimation

    backbone = {
        "model_type": "vitpose_backbone", "image_size": [HEIGHT, WIDTH], "patch_size": [16, 16], "hidden_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2, "num_experts": experts, "part_features": 8,
        "out_indices": [2], **changes,
    }  # fmt: skip
    torch.manual_seed(0)
    built = VitPoseForPoseEstimation(
        VitPoseConfig(backbone_config=backbone, use_simple_decoder=simple, num_labels=JOINTS)
    ).eval()
    with torch.no_grad():
        for name, value in built.named_parameters():
            if not name.startswith("head.batchnorm"):
                value.normal_(std=0.2)
    return built


def random_crops(count: int) -> Tensor:
    return torch.randint(
        0, 256, (count, HEIGHT, WIDTH, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )


@pytest.mark.parametrize(
    "options", [{}, {"simple": False}, {"experts": 3}], ids=["simple decoder", "classic decoder", "experts"]
)
@torch.no_grad()
def test_an_import_draws_the_maps_of_transformers(options: dict[str, Any], tmp_path: Path) -> None:
    published = model(**options)
    published.save_pretrained(tmp_path / "published")
    checkpoint = import_pose("vitpose", tmp_path / "published", tmp_path / "model.pt")
    source, _ = read_checkpoints([checkpoint])
    assert source is not None and source.size == (WIDTH, HEIGHT)
    assert (source.convention, source.refinement, source.joints.name) == ("udp", "dark", "coco17")
    crops = random_crops(3)
    # COCO is the first of the data sets that experts stand for.
    chosen = {"dataset_index": torch.zeros(3, dtype=torch.int64)} if "experts" in options else {}
    expected = published(rgb(crops), **chosen).heatmaps
    found = source.networks[0](normalise(crops))[-1][:, 0]
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)
    served = InferenceTrunk(source.networks[0])
    assert served.folded
    torch.testing.assert_close(served(crops)[:, 0], expected, atol=1e-3 * float(expected.abs().max()), rtol=0)


def test_maps_are_read_by_udp() -> None:
    """A Gaussian drawn where UDP draws a joint of the picture is found there, mirrored or not."""
    generator = np.random.default_rng(0)
    skeleton = SKELETONS["coco17"]
    fusion = PoseFusion(skeleton, skeleton, 4, "dark", sigma=2.0, convention="udp")
    average = FlipAverage(skeleton, flip_shift("udp", 4))
    for size in ((192, 256), (288, 384)):
        box = np.array([[120.0, 40.0, 220.0, 300.0]])
        matrix = box_crop_matrices(box, size)[0]
        points = generator.uniform((140, 70), (200, 270), (JOINTS, 2))
        crop = transform_points(matrix, points)
        maps = [_drawn(crop, size)]
        turned = crop[list(skeleton.flip_permutation)]
        turned[:, 0] = size[0] - 1 - turned[:, 0]
        for given in (maps, average(maps, [_drawn(turned, size)])):
            found = fusion(given, torch.ones(1, 1, dtype=torch.float64))[0, :, :2].numpy()
            assert np.abs(transform_points(invert_affine(matrix), found) - points).max() < 0.05
        # The counterpart: cells of four pixels put joints beside themselves, the more the farther from the middle.
        plain = PoseFusion(skeleton, skeleton, 4, "dark", sigma=2.0)(maps, torch.ones(1, 1, dtype=torch.float64))
        assert np.abs(plain[0, :, :2].numpy() - crop).max() > 0.5


def _drawn(crop: np.ndarray, size: tuple[int, int]) -> Tensor:
    width, height = size[0] // 4, size[1] // 4
    cells = crop * [(width - 1) / (size[0] - 1), (height - 1) / (size[1] - 1)]
    return gaussian_maps(torch.from_numpy(cells)[None], (height, width), 2.0)


@pytest.mark.slow
async def test_an_exported_import_answers_over_http(people16: Sixteen, tmp_path: Path) -> None:
    published = model()
    with torch.no_grad():
        maps = published(rgb(random_crops(4))).heatmaps
        # Peaks as a trained network's: positive all around.
        published.head.conv.weight.mul_(0.15 / maps.std())
        published.head.conv.bias.fill_(0.35 - float(maps.mean()) * 0.15 / float(maps.std()))
    published.save_pretrained(tmp_path / "published")
    checkpoint = import_pose("vitpose", tmp_path / "published", tmp_path / "model.pt")
    repository = await export([checkpoint], tmp_path / "models", people16, "--precision", "fp32")
    parameters = read_repository(repository)["trained"].metadata.parameters
    assert (parameters["convention"], parameters["refinement"]) == ("udp", "dark")
    skeleton = SKELETONS["coco17"]
    fusion = PoseFusion(skeleton, skeleton, 4, "dark", sigma=2.0, convention="udp")
    people = people16.people()[:4]
    apart = []
    for (path, (x, y, width, height)), answer in zip(people, await ask(repository, people), strict=True):
        matrix = box_crop_matrices(np.array([[x, y, x + width, y + height]]), (WIDTH, HEIGHT))[0]
        crops = torch.from_numpy(crop_people(read_rgb(path), matrix[None], (WIDTH, HEIGHT)))
        with torch.no_grad():
            heatmaps = published(rgb(crops)).heatmaps.double().clamp_min(0)
        found = fusion([heatmaps], torch.ones(1, 1, dtype=torch.float64))[0, :, :2].numpy()
        apart.append(np.abs(answer - transform_points(invert_affine(matrix), found)).max(-1))
    assert np.concatenate(apart).max() < 0.05


def test_other_models_and_partial_ones_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file, save_file

    folder, output = tmp_path / "published", tmp_path / "model.pt"
    model().save_pretrained(folder)
    whole = load_file(folder / "model.safetensors")
    lost = "backbone.encoder.layer.1.mlp.fc2.weight"
    save_file({k: v for k, v in whole.items() if k != lost}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PretrainedError, match=lost.replace(".", r"\.")):
        import_pose("vitpose", folder, output)
    model(patch_size=[8, 8]).save_pretrained(folder)
    with pytest.raises(PretrainedError, match=r"patches of \[8, 8\] enlarged 4 times"):
        import_pose("vitpose", folder, output)
    model().save_pretrained(folder)
    with pytest.raises(PretrainedError, match=r"takes crops of \(96, 128\)"):
        import_pose("vitpose", folder, output, size=(192, 256))
    with pytest.raises(PretrainedError, match=r"nowhere: cannot be had.*model\.safetensors"):
        import_pose("vitpose", tmp_path / "nowhere", output)
    assert not output.exists()


def test_recipes_name_it_with_an_architecture() -> None:
    with pytest.raises(ValueError, match="architecture"):
        network_config({"name": "vitpose"})
    with pytest.raises(ValueError, match=r"image_size \[256, 192\]"):
        network_config(
            {
                "name": "vitpose",
                "width": 96,
                "height": 128,
                "architecture": {"backbone_config": {"image_size": [256, 192]}},
            }
        )
