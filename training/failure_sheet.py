"""One picture of the people who are met worst, drawn as sketches: a model card may show it, a photograph it may not."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from service.drawing import draw_people, encode_picture
from service.people import People, PosedPicture
from service.skeletons import Skeleton
from training.evaluate import Evaluation, Measured
from training.evaluation_report import enlarge
from training.metrics.pck import Pair, similarity

Pixels = npt.NDArray[np.uint8]

_BACKGROUND = (58, 62, 70)
_TEXT = (235, 235, 235)
_CELL = 220
_COLUMNS = 4
# Who has fewer labelled joints says little about a network; whom it did not find is the detector's failure.
_MIN_JOINTS = 10
_DRAWN_SCORE = 0.05
# How much around the box is shown.
_MARGIN = 1.3


def draw_failures(evaluation: Evaluation, path: Path, count: int = 12) -> list[Path]:
    """Draw the found, well labelled people with the lowest OKS, one of each picture at most.

    Args:
        evaluation: whose answers.
        path: the PNG; with several data sets each gets its own, ``failures.png`` becomes ``failures.coco_val.png``.
        count: people on a sheet.

    Returns:
        the files; a data set without any such person has none.
    """
    written = []
    for measured in evaluation.sets:
        worst = _worst(measured, count)
        if not worst:
            continue
        several = len(evaluation.sets) > 1
        target = path.with_suffix(f".{measured.data.name}{path.suffix}") if several else path
        cells = [_cell(pair, oks, measured, evaluation.model.skeleton) for oks, pair in worst]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encode_picture(_tiled(cells), "image/png"))
        written.append(target)
    return written


def _worst(measured: Measured, count: int) -> list[tuple[float, Pair]]:
    """Lowest OKS first."""
    found = [pair for pair in measured.pairs if pair.keypoints is not None and pair.person.labelled >= _MIN_JOINTS]
    ranked = sorted(((similarity(pair, measured.joints), pair) for pair in found), key=lambda entry: entry[0])
    chosen: dict[int, tuple[float, Pair]] = {}
    for oks, pair in ranked:
        chosen.setdefault(pair.picture, (oks, pair))
    return list(chosen.values())[:count]


def _cell(pair: Pair, oks: float, measured: Measured, model: Skeleton) -> Pixels:
    """Truth on the left, answer on the right, a line of text above. uint8 [_CELL + 24, 2 * _CELL, 3]."""
    assert pair.keypoints is not None
    truth = pair.person.keypoints.copy()
    truth[:, 2] = truth[:, 2] > 0
    sides = ((truth, measured.data.skeleton, 0.5), (pair.keypoints, model, _DRAWN_SCORE))
    panels = [_panel(pair.person.box, joints, skeleton, threshold) for joints, skeleton, threshold in sides]
    title = np.full((24, 2 * _CELL, 3), _BACKGROUND, np.uint8)
    name = measured.data.images[pair.picture].path.stem
    text = f"{name}   truth | answer   OKS {oks:.2f}"
    cv2.putText(title, text, (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.42, _TEXT, 1, cv2.LINE_AA)
    body = np.hstack(panels)
    body[:, _CELL - 1 : _CELL + 1] = _TEXT
    return np.vstack([title, body])


def _panel(
    box: npt.NDArray[np.float64], joints: npt.NDArray[np.float64], skeleton: Skeleton, threshold: float
) -> Pixels:
    scale = _CELL / (_MARGIN * float(np.max(box[2:] - box[:2])))
    origin = (box[:2] + box[2:]) / 2 - _CELL / (2 * scale)
    people = enlarge(People(box[None], np.ones(1), joints[None], np.ones(1)), scale, origin)
    canvas = np.full((_CELL, _CELL, 3), _BACKGROUND, np.uint8)
    return draw_people(PosedPicture(0, _CELL, _CELL, people, canvas), skeleton, threshold)


def _tiled(cells: list[Pixels]) -> Pixels:
    columns = min(_COLUMNS, len(cells))
    empty = np.full_like(cells[0], _BACKGROUND)
    padded = cells + [empty] * (-len(cells) % columns)
    rows = [np.hstack(padded[start : start + columns]) for start in range(0, len(padded), columns)]
    return np.vstack(rows)
