"""If these fail, torchvision's detectors answer or learn something else than torchvision's own code would."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import _api, get_model
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign, nms

from training.datasets.coco import DatasetError
from training.datasets.objects import read_boxes
from training.detector import DetectorRecipe, make_optimizer
from training.networks.detection_loss import Target
from training.networks.detectors import DETECTORS, detector_config
from training.networks.torchvision_detectors import TorchvisionConfig, TorchvisionDetector
from training.recipe import DataSource, RecipeError

SIDE = 128
MOBILE = "fasterrcnn_mobilenet_v3_large_fpn"
SLOW = [
    pytest.param(name, marks=() if name == MOBILE else pytest.mark.slow)
    for name in DETECTORS
    if name.startswith("fasterrcnn_")
]
ALL_REFINED = {"proposals_before_nms": 150, "refined": 80, "proposals": 80}


def small(name: str = MOBILE, **changes: object) -> TorchvisionConfig:
    config = detector_config({"name": name, "input_size": SIDE, **ALL_REFINED, **changes})
    assert isinstance(config, TorchvisionConfig)
    return config


def random_detector(config: TorchvisionConfig) -> TorchvisionDetector:
    """Random, but with statistics that fit and outputs that differ from place to place."""
    torch.manual_seed(0)
    network = config.build()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            module.momentum = None
    network.train()
    with torch.no_grad():
        network.features(pictures(4, seed=1))
        for layer, deviation in (
            (network.model.rpn.head.cls_logits, 0.1),
            (network.model.rpn.head.bbox_pred, 0.05),
            (network.model.roi_heads.box_predictor.cls_score, 0.1),
        ):
            nn.init.normal_(layer.weight, std=deviation)
    return network.eval()


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    """Smooth noise: features of white noise hardly differ from place to place."""
    coarse = torch.rand(count, 3, 9, 9, generator=torch.Generator().manual_seed(seed)) * 255
    fine = nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bilinear")
    return fine.permute(0, 2, 3, 1).to(torch.uint8)


def as_torchvision(network: TorchvisionDetector, images: torch.Tensor) -> list[torch.Tensor]:
    """The same pictures for torchvision's own forward, which then changes neither their size nor what is kept."""
    model, config = network.model, network.network
    model.transform.min_size, model.transform.max_size = (SIDE,), SIDE
    # In training it draws a size from one, and so moves the generator that samples anchors.
    model.transform.torch_choice = lambda sizes: sizes[0]
    before, most = config.proposals_before_nms, config.training_proposals
    model.rpn._pre_nms_top_n = {"training": most, "testing": before}
    model.rpn._post_nms_top_n = {"training": most, "testing": config.refined}
    model.rpn.score_thresh = config.proposal_score
    model.roi_heads.score_thresh, model.roi_heads.detections_per_img = 0.0, 100_000
    return [image.permute(2, 0, 1).float() / 255 for image in images]


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("classes", ["person", "coco80"])
def test_boxes_are_those_of_torchvisions_forward(name: str, classes: str) -> None:
    network, images = random_detector(small(name, classes=classes)), pictures(3)
    with torch.no_grad():
        boxes, scores = network.detect(images)
        expected = network.model(as_torchvision(network, images))
    assert boxes.shape == (3, 80, 4)
    assert scores.shape == (3, 80)
    for row, answer in enumerate(expected):
        people = answer["labels"] == 1
        kept = nms(boxes[row], scores[row], network.model.roi_heads.nms_thresh)
        kept = kept[scores[row][kept] > 0]
        assert abs(len(kept) - int(people.sum())) <= 2
        assert len(kept) > 20
        # Scores that are equal up to rounding may come in another order, and a pair at the very edge of a cut or of an
        # NMS threshold may fall either way.
        ours = torch.cat([boxes[row][kept], 100 * scores[row][kept, None]], 1)
        theirs = torch.cat([answer["boxes"][people], 100 * answer["scores"][people, None]], 1)
        apart = torch.cdist(ours, theirs, p=torch.inf)
        assert (apart.amin(0) < 0.02).float().mean() > 0.95
        assert (apart.amin(1) < 0.02).float().mean() > 0.95


@pytest.mark.parametrize("name", SLOW)
def test_losses_are_those_of_torchvisions_forward(name: str) -> None:
    network, images = (
        random_detector(small(name, classes="coco80", training_proposals=100, head_samples=32)),
        pictures(2),
    )
    truth = [torch.tensor([[20.0, 10, 60, 110], [70, 30, 120, 90]]), torch.tensor([[5.0, 40, 50, 120]])]
    labels = [torch.tensor([1, 18]), torch.tensor([1])]
    network.train()
    inputs = as_torchvision(network, images)
    torch.manual_seed(5)
    expected = network.model(inputs, [{"boxes": b, "labels": k} for b, k in zip(truth, labels, strict=True)])
    torch.manual_seed(5)
    nothing = torch.zeros(0, 4)
    total, parts = network.losses(images, [Target(b, nothing, k) for b, k in zip(truth, labels, strict=True)])
    named = {"rpn_class": "loss_objectness", "rpn_box": "loss_rpn_box_reg",
             "head_class": "loss_classifier", "head_box": "loss_box_reg"}  # fmt: skip
    for ours, theirs in named.items():
        assert float(parts[ours]) == pytest.approx(float(expected[theirs].detach()), rel=1e-4), ours
    assert float(total.detach()) == pytest.approx(sum(float(v.detach()) for v in expected.values()), rel=1e-4)


def test_nothing_in_an_ignore_region_is_background() -> None:
    network, images = random_detector(small()), pictures(2)
    network.train()
    everywhere, nothing = torch.tensor([[0.0, 0, SIDE, SIDE]]), torch.zeros(0, 4)
    total, parts = network.losses(images, [Target(nothing, everywhere)] * 2)
    assert "head_class" not in parts
    assert float(total.detach()) == 0
    seen: list[torch.Tensor] = []
    left = torch.tensor([[0.0, 0, SIDE / 2, SIDE]])
    network.refine = lambda levels, rois, limit: (
        seen.append(rois)
        or TorchvisionDetector.refine(  # type: ignore[method-assign, func-returns-value]
            network, levels, rois, limit
        )
    )
    network.losses(images, [Target(nothing, left)] * 2)
    inside = (seen[0][:, [1, 3]].clamp(max=SIDE / 2)[:, 1] - seen[0][:, 1]) / (seen[0][:, 3] - seen[0][:, 1])
    assert len(inside) > 10
    assert float(inside.max()) < 0.5


def test_pictures_of_a_batch_do_not_touch_each_other_and_padding_has_score_zero() -> None:
    network, images = random_detector(small(proposal_nms=0.05)), pictures(3)
    with torch.no_grad():
        boxes, scores = network.detect(images)
        for row in range(3):
            alone, score = network.detect(images[row : row + 1])
            assert torch.allclose(score[0], scores[row], atol=1e-5)
            sure = scores[row] > 0
            assert torch.allclose(alone[0][sure], boxes[row][sure], atol=1e-2)
        proposals, logits = network.propose(network.score(network.features(images), SIDE), SIDE, 150, 80)
    assert (logits == -1e4).any(), "this strict a suppression leaves rows over"
    assert ((scores > 0).sum(1) == (logits > -1e4).sum(1)).all()
    assert scores.diff(dim=1).max() <= 0
    assert proposals.min() >= 0
    assert proposals.max() <= SIDE


def test_pooling_is_torchvisions() -> None:
    config = small("fasterrcnn_resnet50_fpn")
    network = TorchvisionDetector.__new__(TorchvisionDetector)
    nn.Module.__init__(network)
    network.network = config
    network.model = nn.Module()
    network.model.roi_heads = nn.Module()
    network.model.roi_heads.box_roi_pool = pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    side, generator = 1024, torch.Generator().manual_seed(0)
    levels = {str(i): torch.rand(2, 3, side >> (2 + i), side >> (2 + i), generator=generator) for i in range(4)}
    levels["pool"] = torch.rand(2, 3, 16, 16)
    corner = torch.rand(2, 40, 2, generator=generator) * 500
    size = 2 ** (torch.rand(2, 40, 2, generator=generator) * 9)
    boxes = torch.cat([corner, corner + size], -1)
    expected = pool(levels, list(boxes), [(side, side)] * 2)
    rois = torch.cat([torch.arange(2).repeat_interleave(40)[:, None], boxes.reshape(-1, 4)], 1)
    assert torch.allclose(network.pool(levels, rois, side), expected, atol=1e-5)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file laid out as torchvision's COCO weights of the MobileNet detector, with random numbers."""
    torch.manual_seed(3)
    model = get_model(MOBILE, weights=None, weights_backbone=None)
    freeze = {k: v.abs() + 0.5 if k.endswith("running_var") else v for k, v in model.state_dict().items()}
    # The published networks keep their statistics, and so have no count of batches.
    state = {key: value for key, value in freeze.items() if not key.endswith("num_batches_tracked")}
    path = tmp_path_factory.mktemp("weights") / "fasterrcnn_mobilenet.pth"
    torch.save(state, path)
    return path


def test_published_weights_load_whole_or_cut_to_people(published: Path) -> None:
    state = torch.load(published, weights_only=True)
    whole, people = (small(init=str(published), classes=classes) for classes in ("coco80", "person"))
    networks = []
    for config in (whole, people):
        network = config.build()
        config.initialise(network)
        networks.append(network.eval())
        assert torch.equal(network.model.backbone.body["0"][0].weight, state["backbone.body.0.0.weight"])
        assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        assert any(isinstance(module, FrozenBatchNorm2d) for module in network.modules())
    predictor = networks[1].model.roi_heads.box_predictor
    assert torch.equal(predictor.cls_score.weight, state["roi_heads.box_predictor.cls_score.weight"][:2])
    assert torch.equal(predictor.bbox_pred.bias, state["roi_heads.box_predictor.bbox_pred.bias"][:8])
    with torch.no_grad():
        first, second = (network.detect(pictures(1))[0] for network in networks)
        proposals = [network.score(network.features(pictures(1)), SIDE).logits for network in networks]
    assert all(torch.equal(a, b) for a, b in zip(*proposals, strict=True))
    assert {tuple(box) for box in first[0].round().tolist()} == {tuple(box) for box in second[0].round().tolist()}


def test_given_weights_fix_the_first_stages(published: Path) -> None:
    def learning(**changes: object) -> set[str]:
        body = small(**changes).build().model.backbone.body
        return {name for name, child in body.named_children() if any(p.requires_grad for p in child.parameters())}

    everything = learning()
    assert learning(init=str(published)) == learning(init=str(published), trainable_layers=3) < everything
    assert learning(init=str(published), trainable_layers=0) == set()
    assert learning(init=str(published), trainable_layers=6) == everything
    recipe = DetectorRecipe.model_validate({"train": [{"annotations": "/n", "images": "/n"}], "steps": 1})
    config = small(init=str(published))
    optimised = {id(p) for group in make_optimizer(config.build(), recipe).param_groups for p in group["params"]}
    assert len(optimised) < len(list(config.build().parameters()))


def test_imagenet_weights_load_into_the_backbone(tmp_path: Path) -> None:
    classifier = get_model("mobilenet_v3_large", weights=None)
    torch.save(classifier.state_dict(), tmp_path / "mobilenet.pth")
    config = small(backbone_init=str(tmp_path / "mobilenet.pth"))
    network = config.build()
    config.initialise(network)
    assert torch.equal(network.model.backbone.body["16"][0].weight, classifier.features[16][0].weight)


def test_weights_that_cannot_be_had_are_explained(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("Temporary failure in name resolution")

    monkeypatch.setattr(_api, "load_state_dict_from_url", offline)
    network = small().build()
    with pytest.raises(
        RecipeError, match=r"network\.init: .*Without internet.*--set network\.init=/path/to/fasterrcnn"
    ):
        small(init="coco").initialise(network)
    with pytest.raises(RecipeError, match=r"Without internet.*--set network\.backbone_init="):
        small(backbone_init="imagenet").initialise(network)
    with pytest.raises(RecipeError, match=r"nowhere\.pth"):
        small(init=str(tmp_path / "nowhere.pth")).initialise(network)
    with pytest.raises(RecipeError, match="not weights of this network"):
        small(backbone_init=str(published)).initialise(network)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(RecipeError, match="not weights of this network"):
        small(init=str(tmp_path / "other.pth")).initialise(network)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "yolo"}, "unknown detector 'yolo'; known: faster_rcnn, fasterrcnn_mobilenet"),
        ({"name": MOBILE, "refined": 10, "proposals": 20}, "refined"),
        ({"name": MOBILE, "init": "coco", "backbone_init": "imagenet"}, "leave backbone_init out"),
        ({"name": MOBILE, "input_size": 2048}, "input_size"),
        ({"name": MOBILE, "width": 8}, "width"),
    ],
)
def test_networks_that_do_not_fit_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        detector_config(changes)


def test_settings_of_another_kind_of_training_are_refused() -> None:
    source = {"annotations": "/n", "images": "/n"}
    with pytest.raises(ValueError, match="thresholds in network"):
        DetectorRecipe.model_validate(
            {"train": [source], "steps": 1, "network": {"name": MOBILE}, "loss": {"head_samples": 8}}
        )
    with pytest.raises(ValueError, match="share says how crops are drawn"):
        DetectorRecipe.model_validate({"train": [{**source, "share": 0.5}], "steps": 1})


def test_too_small_a_picture_is_told() -> None:
    with pytest.raises(ValueError, match="proposals asked for"), torch.no_grad():
        random_detector(small(refined=5000)).detect(pictures(1))


def coco_file(path: Path, **changes: object) -> DataSource:
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 100, "height": 80}],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 18, "bbox": [10, 20, 30, 40]},
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [50, 20, 30, 40]},
            {"id": 3, "image_id": 7, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        ],
        **changes,
    }
    path.write_text(json.dumps(content))
    return DataSource(annotations=path, images=path.parent)


def test_all_categories_are_read_with_cocos_numbers(tmp_path: Path) -> None:
    (record,) = read_boxes(coco_file(tmp_path / "instances.json"), every_category=True).images
    assert record.boxes.tolist() == [[10, 20, 40, 60], [50, 20, 80, 60]]
    assert record.labels.tolist() == [18, 1]
    assert record.crowds.tolist() == [[0, 0, 9, 9]]
    assert record.path == tmp_path / "a.jpg"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"categories": [{"id": 1, "name": "cat"}]}, "category 1 is 'cat'"),
        ({"categories": [{"id": 1, "name": "person"}, {"id": 300, "name": "x"}]}, "category id 300"),
        ({"annotations": [{"id": 5, "image_id": 8, "category_id": 1, "bbox": [0, 0, 1, 1]}]}, "annotation 5 .* 8"),
        ({"annotations": [{"id": 6, "image_id": 7, "category_id": 1, "bbox": [0, 0, -1, 1]}]}, "annotation 6"),
        ({"annotations": [{"id": 6, "image_id": 7}]}, "category_id"),
    ],
)
def test_files_that_are_not_cocos_are_told(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    source = coco_file(tmp_path / "instances.json", **changes)
    with pytest.raises(DatasetError, match=said) as caught:
        read_boxes(source, every_category=True)
    assert "instances.json" in str(caught.value)


def test_categories_stay_with_their_boxes_through_augmentation(tmp_path: Path) -> None:
    from training.datasets.detection import DetectionAugmentation, DetectionDataset
    from training.datasets.objects import BoxSet
    from training.datasets.pictures import Picture

    image = np.zeros((100, 100, 3), np.uint8)
    boxes = np.array([[10, 10, 30, 40], [60, 50, 90, 95]], np.float32)
    image[10:40, 10:30], image[50:95, 60:90] = 100, 250
    picture = Picture(image, boxes, np.zeros((0, 4), np.float32), True, 1.28, np.array([1, 18]))
    options = DetectionAugmentation(size=SIDE, colour=0, mosaic=0.5)
    samples = DetectionDataset([(BoxSet("drawn", ()), [lambda: picture])], options, 0, 100)
    seen = set()
    for index in range(20):
        drawn, target = samples[index]
        assert len(target.labels) == len(target.boxes)
        for (x1, y1, x2, y2), label in zip(target.boxes.tolist(), target.labels.tolist(), strict=True):
            assert int(drawn[int(y1 + y2) // 2, int(x1 + x2) // 2, 0]) == (100 if label == 1 else 250)
            seen.add(label)
    assert seen == {1, 18}
