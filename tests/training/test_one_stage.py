"""If these fail, the one-stage detector puts boxes in other places than it saw people, or starts from other weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from training.box_precision import box_precision, detect_people
from training.datasets.objects import read_boxes
from training.datasets.pictures import load_picture
from training.detector import DetectorRecipe, train_detector
from training.networks.one_stage import STRIDES, OneStage, OneStageConfig
from training.networks.simple_baseline import SimpleBaselineConfig
from training.recipe import DataSource, RecipeError

SIDE = 128
SMALL = OneStageConfig(width=8, channels=16, input_size=SIDE, proposals=40)


@pytest.fixture
def network() -> OneStage:
    """Untrained, but with outputs that differ clearly from place to place."""
    torch.manual_seed(0)
    network = SMALL.build()
    for layer in (network.score_output, network.side_output):
        torch.nn.init.normal_(layer.weight, std=0.5)
    return network.eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 255, (5, SIDE, SIDE, 3), dtype=np.uint8))


def test_scores_and_boxes_come_from_the_place_that_they_are_for() -> None:
    """Features that say where they are: scores and boxes must say the same."""
    network = OneStageConfig(width=8, channels=8, shared=0, apart=0, input_size=SIDE, proposals=40).build()
    levels = []
    for stride in STRIDES:
        steps = (torch.arange(SIDE // stride) + 0.5) * stride
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        levels.append(torch.stack([x, y, *[torch.zeros_like(x)] * 6]).expand(2, -1, -1, -1))
    with torch.no_grad():
        network.score_output.weight[0, :, 0, 0] = torch.tensor([1.0, 1000.0, *[0.0] * 6])
        network.score_output.bias.zero_()  # type: ignore[union-attr]
        output = network.outputs(levels)
    assert torch.allclose(output.logits, (output.points[:, 0] + 1000 * output.points[:, 1]).expand(2, -1))
    assert output.sides.shape == (2, len(output.points), 4 * 16)


def test_the_best_places_are_answered_best_first_and_within_the_picture(
    network: OneStage, images: torch.Tensor
) -> None:
    with torch.no_grad():
        boxes, scores = network.detect(images)
        output = network.outputs(network.features(images))
    assert boxes.shape == (5, 40, 4)
    assert torch.equal(scores, scores.sort(dim=1, descending=True).values)
    expected = torch.sigmoid(output.logits).sort(dim=1, descending=True).values[:, :40]
    assert torch.allclose(scores, expected)
    assert boxes.min() >= 0
    assert boxes.max() <= SIDE
    assert (boxes[..., 2:] > boxes[..., :2]).all()


def test_pictures_of_a_batch_do_not_touch_each_other(network: OneStage, images: torch.Tensor) -> None:
    with torch.no_grad():
        together = network.detect(images)
        for row in range(5):
            alone = network.detect(images[row : row + 1])
            assert torch.allclose(alone[1][0], together[1][row], atol=1e-4)
            assert torch.allclose(alone[0][0], together[0][row], atol=1e-2)


def test_untrained_boxes_are_about_as_large_as_people() -> None:
    torch.manual_seed(0)
    network = OneStageConfig(width=8, channels=16).build().eval()
    with torch.no_grad():
        boxes, scores = network.detect(torch.full((1, 384, 384, 3), 114, dtype=torch.uint8))
    width = (boxes[..., 2] - boxes[..., 0]).median()
    assert 30 < float(width) < 200
    assert scores.max() < 0.05


@pytest.mark.parametrize("blocks", [(2, 2, 2, 2), (1, 2, 2, 2)])
def test_a_pose_network_on_the_same_backbone_is_a_start(tmp_path: Path, blocks: tuple[int, int, int, int]) -> None:
    torch.manual_seed(0)
    pose = SimpleBaselineConfig(backbone="light", width=8, deconv_channels=16).build(17, ["medium"])
    torch.save({"kind": "pose", "recipe": {}, "weights": pose.state_dict()}, tmp_path / "model.pt")
    config = SMALL.model_copy(update={"init": tmp_path / "model.pt", "blocks": blocks})
    network = config.build()
    config.initialise(network)
    theirs = pose.backbone.state_dict()
    own = network.backbone.state_dict()
    assert len(own) >= 50
    assert all(torch.equal(value, theirs[name]) for name, value in own.items())
    with pytest.raises(RecipeError, match=r"network\.init.*nowhere"):
        SMALL.model_copy(update={"init": tmp_path / "nowhere.pt"}).initialise(network)


def test_imagenet_weights_go_into_a_backbone_that_has_them(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    published = resnet18().state_dict()
    torch.save(published, tmp_path / "resnet18.pth")
    config = OneStageConfig(backbone="resnet18", channels=16, backbone_init=tmp_path / "resnet18.pth")
    network = config.build()
    config.initialise(network)
    assert all(torch.equal(value, published[name]) for name, value in network.backbone.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backbone_init": "/a.pth"}, "light backbone"),
        ({"init": "/a.pt", "backbone": "resnet18", "backbone_init": "/a.pth"}, "leave backbone_init out"),
        ({"input_size": 64, "proposals": 100}, "have 84 places"),
        ({"input_size": 100}, "input_size"),
    ],
)
def test_fields_that_do_not_fit_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        OneStageConfig.model_validate(changes)


@pytest.mark.slow
def test_eight_photographs_are_learnt_by_heart(photographs: Path, tmp_path: Path) -> None:
    data = json.loads((photographs / "coco_train.json").read_text())
    people: dict[int, list[dict[str, object]]] = {}
    for annotation in data["annotations"]:
        people.setdefault(annotation["image_id"], []).append(annotation)

    def good(image: dict[str, int]) -> bool:
        found = people.get(image["id"], [])
        heights = [annotation["bbox"][3] / max(image["width"], image["height"]) for annotation in found]  # type: ignore
        return bool(image["all_people_labelled"]) and 1 <= len(found) <= 4 and min(heights) > 0.15

    data["images"] = [image for image in data["images"] if good(image)][:8]
    data["annotations"] = [a for image in data["images"] for a in people[image["id"]]]
    (tmp_path / "eight.json").write_text(json.dumps(data))
    source = {"annotations": str(tmp_path / "eight.json"), "images": str(photographs / "coco_train")}
    content = {
        "train": [source], "held_out": 0.0,
        "network": {"name": "one_stage", "width": 16, "channels": 32, "input_size": 192},
        "augmentation": {"size": 192, "mosaic": 0, "colour": 0, "flip": 0, "scale": [0.999, 1.001]},
        "batch_size": 8, "steps": 200, "warmup_steps": 10, "learning_rate": 0.003, "ema_decay": 0.9, "device": "cpu",
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    recipe = DetectorRecipe.model_validate(content)
    pictures = [load_picture(r, 512, 192) for r in read_boxes(DataSource.model_validate(source)).images]

    def precision(network: OneStage) -> float:
        found = detect_people(network, pictures, 192, torch.device("cpu"), bf16=False)
        return box_precision(pictures, found)["AP50"]

    fresh = recipe.network.build()
    assert isinstance(fresh, OneStage)
    assert precision(fresh) < 0.2, "the measure can fail"
    trained = recipe.network.build()
    trained.load_state_dict(torch.load(train_detector(path, tmp_path / "run"), weights_only=True)["weights"])
    assert isinstance(trained, OneStage)
    assert precision(trained) > 0.9
