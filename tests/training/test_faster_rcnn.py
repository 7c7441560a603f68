"""If these fail, boxes are coded, suppressed or refined wrongly, or the exported detector differs from the trained."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms

from training.networks.detection_loss import DetectorLoss, Target, ignored_by, match_anchors, rpn_loss, sample_proposals
from training.networks.faster_rcnn import (
    HEAD_CODE,
    NO_PROPOSAL,
    STRIDES,
    DetectorForExport,
    DetectorNetwork,
    FasterRcnn,
    decode,
    encode,
    suppress,
)

SIDE = 128
SMALL = DetectorNetwork(
    width=8, pyramid_channels=16, head_channels=32, input_size=SIDE, proposals=20, proposals_before_nms=40
)


def random_boxes(*shape: int, side: float = SIDE) -> torch.Tensor:
    corner = torch.rand(*shape, 2) * side * 0.7
    return torch.cat([corner, corner + 3 + torch.rand(*shape, 2) * side * 0.3], -1).clamp(max=side)


@pytest.fixture
def network() -> FasterRcnn:
    """A small untrained network whose outputs differ clearly from place to place."""
    torch.manual_seed(0)
    network = FasterRcnn(SMALL)
    for layer in (*network.rpn_outputs, network.head_output):
        torch.nn.init.normal_(layer.weight, std=0.3)
    return network.eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 255, (5, SIDE, SIDE, 3), dtype=np.uint8))


def test_box_code_is_torchvisions() -> None:
    torch.manual_seed(0)
    boxes, references = random_boxes(50), random_boxes(50)
    expected = BoxCoder(HEAD_CODE).encode_single(boxes, references)
    assert torch.allclose(encode(boxes, references, HEAD_CODE), expected, atol=1e-4)
    assert torch.allclose(decode(expected, references, HEAD_CODE, SIDE), boxes, atol=1e-3)


def test_anchors_sit_on_cell_centres_with_asked_area_and_ratio(network: FasterRcnn) -> None:
    level, side = 1, SIDE // STRIDES[1]
    anchors = network.anchors(level, side, torch.device("cpu")).view(side, side, -1, 4)
    sizes, ratios = SMALL.anchor_sizes[level], SMALL.anchor_ratios
    for number, (size, ratio) in enumerate((s, r) for s in sizes for r in ratios):
        x1, y1, x2, y2 = anchors[2, 3, number].tolist()
        assert ((x1 + x2) / 2, (y1 + y2) / 2) == pytest.approx((3.5 * 16, 2.5 * 16))
        assert (x2 - x1) * (y2 - y1) == pytest.approx(size**2, rel=1e-4)
        assert (y2 - y1) / (x2 - x1) == pytest.approx(ratio, rel=1e-4)


@pytest.mark.parametrize("apart", [True, False])
def test_suppression_is_batched_nms(apart: bool) -> None:
    torch.manual_seed(0)
    boxes, scores = random_boxes(3, 60), torch.randn(3, 60)
    kept = suppress(boxes, scores, 0.5, SIDE, apart=apart)
    rows = torch.arange(3).repeat_interleave(60)
    expected = batched_nms(boxes.reshape(-1, 4), scores.reshape(-1), rows, 0.5)
    assert kept.reshape(-1).nonzero().flatten().tolist() == sorted(expected.tolist())


def test_proposals_fill_a_fixed_number_of_rows_best_first(network: FasterRcnn, images: torch.Tensor) -> None:
    with torch.no_grad():
        boxes, logits = network.propose(network.rpn(network.features(images)), SIDE, 100)
    assert boxes.shape == (5, 100, 4)
    assert (logits[:, 0] > NO_PROPOSAL).all()
    assert torch.equal(logits, logits.sort(dim=1, descending=True).values)


def test_padding_has_score_zero(network: FasterRcnn, images: torch.Tensor) -> None:
    # Every proposal suppresses all others that it touches: few are left for 20 rows.
    network.network = SMALL.model_copy(update={"proposal_nms": 1e-6})
    with torch.no_grad():
        _, logits = network.propose(network.rpn(network.features(images)), SIDE, SMALL.proposals)
        _, scores = network.detect(images)
    padding = logits == NO_PROPOSAL
    assert padding.any()
    assert (scores[padding] == 0).all()
    assert (scores[~padding] > 0).all()


def test_pooling_reads_the_place_of_the_box_on_every_level(network: FasterRcnn) -> None:
    # Features that say where they are: pooled over a bin, they must give the bin's centre.
    features = []
    for stride in STRIDES:
        steps = (torch.arange(SIDE // stride) + 0.5) * stride
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        features.append(torch.stack([x, y] * 8).expand(2, -1, -1, -1))
    boxes = torch.tensor([[[40.0, 36.0, 60.0, 92.0], [30.0, 32.0, 90.0, 96.0]]] * 2)
    pooled: list[torch.Tensor] = []
    network.head.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
    network.refine(features, boxes)
    place = (torch.arange(7) + 0.5) / 7
    for row, (x1, y1, x2, y2) in enumerate(boxes.reshape(-1, 4).tolist()):
        assert torch.allclose(pooled[0][row, 0], (x1 + place * (x2 - x1)).expand(7, 7), atol=1e-3)
        assert torch.allclose(pooled[0][row, 1], (y1 + place * (y2 - y1))[:, None].expand(7, 7), atol=1e-3)


def test_pictures_of_a_batch_do_not_touch_each_other(network: FasterRcnn, images: torch.Tensor) -> None:
    with torch.no_grad():
        boxes, scores = network.detect(images)
        assert boxes.shape == (5, 20, 4)
        assert scores.shape == (5, 20)
        for row in range(5):
            alone, score = network.detect(images[row : row + 1])
            assert torch.allclose(alone[0], boxes[row], atol=1e-2)
            assert torch.allclose(score[0], scores[row], atol=1e-4)
    assert boxes.min() >= 0
    assert boxes.max() <= SIDE
    assert scores.min() >= 0
    assert scores.max() <= 1


def test_boxes_in_crowds_count_neither_way(network: FasterRcnn) -> None:
    crowd = torch.tensor([[0.0, 0.0, 64.0, 128.0]])
    target = Target(torch.zeros(0, 4), crowd)
    rpn = network.rpn([torch.randn(1, 16, SIDE // s, SIDE // s) for s in STRIDES])
    labels, _ = match_anchors(rpn.anchors, target, DetectorLoss())
    centre = (rpn.anchors[:, 0] + rpn.anchors[:, 2]) / 2
    assert (labels[(centre < 20) & (rpn.anchors[:, 0] > 0) & (rpn.anchors[:, 1] > 0)] == -1).all()
    assert (labels[rpn.anchors[:, 0] >= 64] == 0).all()
    rpn.logits.retain_grad()
    rpn_loss(rpn, [target], DetectorLoss())[0].backward()
    assert rpn.logits.grad is not None
    assert (rpn.logits.grad[0, labels == -1] == 0).all()
    assert (rpn.logits.grad[0, labels == 0] > 0).all()


def test_everybody_has_an_anchor_however_odd_the_box() -> None:
    network = FasterRcnn(SMALL)
    flat = Target(torch.tensor([[4.0, 50.0, 124.0, 62.0], [60.0, 60.0, 70.0, 85.0]]), torch.zeros(0, 4))
    anchors = torch.cat([network.anchors(k, SIDE // s, torch.device("cpu")) for k, s in enumerate(STRIDES)])
    labels, owner = match_anchors(anchors, flat, DetectorLoss())
    assert set(owner[labels == 1].tolist()) == {0, 1}


def test_head_samples_hold_people_background_and_nothing_ignored() -> None:
    torch.manual_seed(0)
    person = torch.tensor([[10.0, 10.0, 40.0, 80.0]])
    crowd = torch.tensor([[80.0, 0.0, 128.0, 128.0]])
    proposals = torch.cat([person + 2, random_boxes(100), torch.tensor([[90.0, 10.0, 110.0, 60.0]])])
    loss = DetectorLoss(head_samples=32)
    boxes, labels, wanted = sample_proposals(proposals, Target(person, crowd), loss)
    assert len(boxes) == len(labels) == len(wanted) == 32
    assert (labels == 1).sum() >= 2
    assert not ignored_by(boxes[labels == 0], crowd).any()
    reached = decode(wanted[labels == 1], boxes[labels == 1], HEAD_CODE, SIDE)
    assert torch.allclose(reached, person.expand_as(reached), atol=1e-2)


def test_head_samples_are_padded_when_there_is_nothing_to_learn_from() -> None:
    everything = Target(torch.zeros(0, 4), torch.tensor([[0.0, 0.0, SIDE, SIDE]]))
    boxes, labels, _ = sample_proposals(random_boxes(10), everything, DetectorLoss(head_samples=8))
    assert len(boxes) == 8
    assert (labels == -1).all()


@pytest.mark.slow
def test_exported_graph_answers_as_the_network(network: FasterRcnn, images: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "detector.onnx"
    with warnings.catch_warnings():
        # The exporter warns of its own internals.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            DetectorForExport(network),
            (images[:3],),
            str(path),
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=["images"],
            output_names=["boxes", "scores"],
            dynamic_shapes={"images": {0: torch.export.Dim("n", min=1, max=64)}},
        )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [o.shape[1:] for o in session.get_outputs()] == [[20, 4], [20]]
    for count in (1, 2, 5):
        with torch.no_grad():
            boxes, scores = network.detect(images[:count])
        found, certain = session.run(None, {"images": images[:count].numpy()})
        assert found.shape == boxes.shape
        # A pair at the very edge of the NMS threshold may fall either way: few rows may differ, most may not.
        assert np.mean(np.abs(found - boxes.numpy()).max(-1) < 0.5) > 0.9
        assert np.median(np.abs(certain - scores.numpy())) < 1e-3
