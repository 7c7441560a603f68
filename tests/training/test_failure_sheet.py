"""If these failed, a model card would show the wrong people, or a photograph that may not be shown."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from service.drawing import LEFT
from service.skeletons import COCO17
from tests.training.test_metrics import SAME, image, person, pose, shifted
from training.answers import ModelFacts
from training.datasets.coco import CocoSet
from training.evaluate import Evaluation, EvaluationRecipe, Measured
from training.failure_sheet import draw_failures
from training.metrics.pck import Pair


def measured(name: str, pairs: list[Pair]) -> Measured:
    pictures = tuple(image(number, pair.person) for number, pair in enumerate(pairs))
    return Measured(CocoSet(name, COCO17, pictures), [], pairs, SAME, None, None, None, 0.0)


def evaluation(*sets: Measured) -> Evaluation:
    recipe = EvaluationRecipe.model_construct(data=())
    return Evaluation("embedded", ModelFacts(COCO17, 0.3), recipe, list(sets))


def test_a_sheet_shows_the_worst_of_each_picture(tmp_path: Path) -> None:
    few = pose()
    few[9:, 2] = 0
    pairs = [
        Pair(0, person(pose()), pose()),
        Pair(1, person(pose()), shifted(pose(), 400.0)),
        Pair(1, person(pose()), shifted(pose(), 500.0)),
        Pair(2, person(pose()), None),
        Pair(3, person(few), shifted(few, 900.0)),
    ]
    (path,) = draw_failures(evaluation(measured("photos", pairs)), tmp_path / "out" / "failures.png", 3)
    sheet = cv2.imread(str(path))
    # Two cells in a row: the right answer and one of picture 1; not the one nobody found, not the one of few labels.
    assert sheet.shape == (244, 2 * 440, 3)
    first, second = sheet[:, :440], sheet[:, 440:]

    def drawn(half: np.ndarray) -> int:
        return int((np.abs(half.astype(int) - LEFT[::-1]).max(-1) < 40).sum())

    # The worst comes first: its answer lies outside of the cell, its truth inside.
    assert drawn(first[:, :220]) > 50 and drawn(first[:, 222:]) == 0
    assert drawn(second[:, :220]) > 50
    assert np.abs(second[24:, 2:218].astype(int) - second[24:, 222:438]).max() == 0


def test_each_data_set_has_its_own_sheet_and_one_without_failures_none(tmp_path: Path) -> None:
    moved = Pair(0, person(pose()), shifted(pose(), 20.0))
    sets = (measured("a", [moved]), measured("b", [moved]), measured("c", [Pair(0, person(pose()), None)]))
    written = draw_failures(evaluation(*sets), tmp_path / "failures.png")
    assert [path.name for path in written] == ["failures.a.png", "failures.b.png"]
