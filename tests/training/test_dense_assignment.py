"""If these fail, places learn the wrong people, or learn from pictures that what nobody labelled is background."""

from __future__ import annotations

import pytest
import torch

from training.networks.dense_assignment import AssignmentRules, assign, candidates
from training.networks.dense_boxes import places
from training.networks.detection_loss import Target

NOWHERE = torch.zeros(0, 4)
TWO = AssignmentRules(places=2)


def level(cells: int = 4, stride: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    return places([cells], [stride], torch.device("cpu"))


def test_places_are_cell_centres_row_by_row_and_level_by_level() -> None:
    points, strides = places([4, 2], [8, 16], torch.device("cpu"))
    assert points[:5].tolist() == [[4, 4], [12, 4], [20, 4], [28, 4], [4, 12]]
    assert points[16:].tolist() == [[8, 8], [24, 8], [8, 24], [24, 24]]
    assert strides.tolist() == [8.0] * 16 + [16.0] * 4


def test_quality_is_that_of_the_case_worked_out_by_hand() -> None:
    points, strides = level()
    person = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    boxes = torch.tensor([[24.0, 24.0, 32.0, 32.0]]).repeat(16, 1)
    scores = torch.full((16,), 0.9)
    # The four places inside of the person: IoU 1, 1/2, 1/4 and 3/4.
    for place, corner, score in ((0, (16, 16), 0.2), (1, (16, 8), 0.5), (4, (8, 8), 0.5), (5, (16, 12), 0.8)):
        boxes[place] = torch.tensor([0.0, 0.0, *corner])
        scores[place] = score
    # Alignments 0.2, 0.5 / 2^6, 0.5 / 4^6 and 0.8 * 0.75^6 = 0.1424: the first and the last are the best two. The
    # best gets its IoU, the other 0.1424 / 0.2 of that.
    found = assign(points, strides, boxes, scores, Target(person, NOWHERE), TWO)
    expected = torch.zeros(16)
    expected[0], expected[5] = 1.0, 0.8 * 0.75**6 / 0.2
    assert torch.allclose(found.quality, expected, atol=1e-5)
    assert found.counted.all()


def test_a_place_between_two_people_belongs_to_the_one_it_boxes_better() -> None:
    points, strides = level()
    people = torch.tensor([[0.0, 0.0, 24.0, 8.0], [0.0, 0.0, 32.0, 8.0]])
    boxes, scores = people[1].repeat(16, 1), torch.full((16,), 0.5)
    boxes[0] = people[0]
    found = assign(points, strides, boxes, scores, Target(people, NOWHERE), AssignmentRules(places=4))
    assert torch.where(found.quality > 0)[0].tolist() == [0, 1, 2, 3]
    assert found.owner[:4].tolist() == [0, 1, 1, 1]
    assert found.quality[:4].tolist() == pytest.approx([1.0] * 4, abs=1e-4)


def test_who_does_not_own_a_place_has_no_say_in_its_quality() -> None:
    points, strides = level()
    people = torch.tensor([[0.0, 0.0, 16.0, 8.0], [0.0, 0.0, 32.0, 8.0]])
    boxes, scores = people[1].repeat(16, 1), torch.full((16,), 0.5)
    # IoU 2/3 with the first person, whose best place it is, and 3/4 with the second, who has better ones.
    boxes[0] = torch.tensor([0.0, 0.0, 24.0, 8.0])
    found = assign(points, strides, boxes, scores, Target(people, NOWHERE), AssignmentRules(places=4))
    assert found.owner[0] == 1
    assert float(found.quality[0]) == pytest.approx(0.75**6, abs=1e-4)


def test_somebody_smaller_than_a_cell_has_a_place_on_the_finest_level() -> None:
    points, strides = places([4, 2], [8, 16], torch.device("cpu"))
    tiny = torch.tensor([[9.0, 17.0, 11.0, 20.0]])
    assert torch.where(candidates(points, strides, tiny)[0])[0].tolist() == [4 * 2 + 1]
    boxes = torch.cat([points - 2 * strides[:, None], points + 2 * strides[:, None]], 1)
    found = assign(points, strides, boxes, torch.full((20,), 0.01), Target(tiny, NOWHERE), AssignmentRules())
    assert torch.where(found.quality > 0)[0].tolist() == [9]


def test_ignored_regions_count_neither_way_but_people_in_them_do() -> None:
    points, strides = level()
    person = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
    boxes = torch.cat([points - 4, points + 4], 1)
    boxes[15] = torch.tensor([0.0, 0.0, 16.0, 32.0])
    half = Target(person, torch.tensor([[0.0, 0.0, 16.0, 32.0]]))
    found = assign(points, strides, boxes, torch.full((16,), 0.5), half, AssignmentRules())
    assert found.quality[0] == pytest.approx(1)
    counted = found.counted.view(4, 4)
    assert counted[0, 0], "the person counts although it lies in the region"
    assert not counted[1:, :2].any() and not counted[0, 1]
    assert counted[:3, 2:].all() and counted[3, 2]
    assert not counted[3, 3], "a box that lies in the region counts not, wherever its place is"


def test_a_picture_of_nobody_is_all_background() -> None:
    points, strides = level()
    found = assign(points, strides, torch.rand(16, 4), torch.rand(16), Target(NOWHERE, NOWHERE), AssignmentRules())
    assert not found.quality.any()
    assert found.counted.all()
