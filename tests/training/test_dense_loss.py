"""If these fail, the one-stage detector is taught something else than its papers say, or unlabelled people."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from training.networks.dense_assignment import AssignmentRules, assign
from training.networks.dense_boxes import DenseOutput, boxes_of, places, sides_of
from training.networks.dense_loss import DenseLoss, dense_loss, distribution_focal, quality_focal
from training.networks.detection_loss import Target

BINS = 8
NOWHERE = torch.zeros(0, 4)


def output(pictures: int = 2, seed: int = 0) -> DenseOutput:
    """Random answers for pictures of 64 pixels, which know a gradient."""
    generator = torch.Generator().manual_seed(seed)
    points, strides = places([8, 4], [8, 16], torch.device("cpu"))
    logits = torch.randn(pictures, 80, generator=generator) - 2
    sides = torch.randn(pictures, 80, 4 * BINS, generator=generator)
    return DenseOutput(logits.requires_grad_(), sides.requires_grad_(), points, strides)


def test_boxes_are_the_means_of_the_distributions() -> None:
    points, strides = torch.tensor([[20.0, 28.0]]), torch.tensor([8.0])
    sides = torch.full((1, 4, BINS), -torch.inf)
    # Left 1, top 2, right 0, bottom half 3 and half 4 strides.
    for side, share in enumerate(([1], [2], [0], [3, 4])):
        sides[0, side, share] = 0.0
    boxes = boxes_of(sides.flatten(1), points, strides)
    assert boxes.tolist() == [[12, 12, 20, 56]]
    assert sides_of(boxes, points, strides).tolist() == [[1, 2, 0, 3.5]]


def test_quality_focal_is_the_focal_loss_where_the_label_is_hard() -> None:
    logits = torch.linspace(-6, 6, 25, dtype=torch.float64)
    for label in (0.0, 1.0):
        quality = torch.full_like(logits, label)
        expected = sigmoid_focal_loss(logits, quality, alpha=-1, gamma=2)
        assert torch.allclose(quality_focal(logits, quality, 2.0), expected)
    at_label = torch.tensor([math.log(0.3 / 0.7)])
    assert quality_focal(at_label, torch.tensor([0.3]), 2.0) == pytest.approx(0, abs=1e-12)


def test_distribution_focal_is_lowest_where_the_mean_is_right() -> None:
    wanted = torch.tensor([[0.0, 2.25, 6.5, 7.0]])
    assert distribution_focal(torch.zeros(1, 4 * BINS), wanted)[0] == pytest.approx(math.log(BINS))
    right = torch.full((4, BINS), -30.0)
    for side, bins in enumerate(({0: 1.0}, {2: 0.75, 3: 0.25}, {6: 0.5, 7: 0.5}, {7: 1.0})):
        for place, share in bins.items():
            right[side, place] = math.log(share)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25) + math.log(0.5)) / 4
    assert distribution_focal(right.view(1, -1), wanted)[0] == pytest.approx(entropy, abs=0.02)
    beyond = distribution_focal(right.view(1, -1), torch.tensor([[0.0, 2.25, 6.5, 90.0]]))
    assert beyond[0] == pytest.approx(entropy, abs=0.02)


def test_loss_is_the_sum_over_places_worked_out_one_by_one() -> None:
    answer = output()
    targets = [
        Target(
            torch.tensor([[4.0, 4.0, 30.0, 60.0], [40.0, 10.0, 60.0, 40.0]]), torch.tensor([[32.0, 32.0, 64.0, 64.0]])
        ),
        Target(NOWHERE, NOWHERE),
    ]
    rules, weights = AssignmentRules(), DenseLoss()
    total, parts = dense_loss(answer, targets, rules, weights)
    score, box, quality = 0.0, 0.0, 0.0
    boxes = boxes_of(answer.sides, answer.points, answer.strides).detach().double()
    for row, target in enumerate(targets):
        chance = torch.sigmoid(answer.logits[row].detach())
        found = assign(answer.points, answer.strides, boxes[row].float(), chance, target, rules)
        for place in range(80):
            label, p = float(found.quality[place]), float(chance[place])
            if found.counted[place]:
                score -= (label - p) ** 2 * (label * math.log(p) + (1 - label) * math.log(1 - p))
            if label > 0:
                box += label * (1 - giou(boxes[row, place].tolist(), target.people[found.owner[place]].tolist()))
                quality += label
    assert float(parts["score"]) == pytest.approx(score / max(quality, 1), rel=1e-3)
    assert float(parts["box"]) == pytest.approx(box / max(quality, 1), rel=1e-3)
    weighed = parts["score"] + 2 * parts["box"] + 0.25 * parts["sides"]
    assert float(total.detach()) == pytest.approx(float(weighed), rel=1e-5)


def giou(a: list[float], b: list[float]) -> float:
    """Rezatofighi et al. 2019, algorithm 1."""

    def area(x1: float, y1: float, x2: float, y2: float) -> float:
        return max(0.0, x2 - x1) * max(0.0, y2 - y1)

    both = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    union = area(*a) + area(*b) - both
    hull = area(min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))
    return both / union - (hull - union) / hull


def test_what_nobody_labelled_teaches_nothing() -> None:
    """A picture of one labelled person, all else ignored: only the person's places have a gradient."""
    person = torch.tensor([[8.0, 8.0, 40.0, 56.0]])
    everywhere = torch.tensor([[0.0, 0.0, 64.0, 64.0]])
    open_answer, closed = output(1), output(1)
    dense_loss(open_answer, [Target(person, NOWHERE)], AssignmentRules(), DenseLoss())[0].backward()
    dense_loss(closed, [Target(person, everywhere)], AssignmentRules(), DenseLoss())[0].backward()
    assert open_answer.logits.grad is not None
    assert closed.logits.grad is not None
    assert (open_answer.logits.grad != 0).all()
    taught = closed.logits.grad[0] != 0
    assert 0 < taught.sum() <= AssignmentRules().places
    assert ((closed.points[taught] > person[0, :2]) & (closed.points[taught] < person[0, 2:])).all()


def test_a_batch_of_nobody_is_no_error() -> None:
    answer = output(1)
    total, parts = dense_loss(answer, [Target(NOWHERE, NOWHERE)], AssignmentRules(), DenseLoss())
    total.backward()
    assert parts["box"] == parts["sides"] == 0
    assert answer.logits.grad is not None
    assert (answer.logits.grad > 0).all()
