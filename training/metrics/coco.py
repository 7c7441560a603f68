"""COCO's figures for people: keypoint AP by OKS and person-box AP by IoU, from pycocotools, with a bootstrap spread.

Joints are joined by name: what the data set or the model lacks is left out on both sides, and the labelled
joints are counted anew. Annotations are numbered from 1 here whatever the file does, since pycocotools takes a
match with annotation 0 for no match.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from service.skeletons import Skeleton
from training.answers import EvaluationError, PictureAnswer
from training.datasets.coco import ImageRecord

Array = npt.NDArray[np.float64]
JsonObject = dict[str, Any]

# Names of pycocotools' stats, by index.
KEYPOINT_FIGURES = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")
BOX_FIGURES = {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5, "AR": 8}

_CATEGORY = {"id": 1, "name": "person"}


@dataclass(frozen=True)
class JoinedJoints:
    """Joints that data set and model have in common.

    Attributes:
        names: in the data set's order.
        sigmas: OKS constants of the data set's skeleton.
        in_truth, in_answer: their indices on both sides.
        left_out: joints of the data set that the model lacks.
    """

    names: tuple[str, ...]
    sigmas: tuple[float, ...]
    in_truth: tuple[int, ...]
    in_answer: tuple[int, ...]
    left_out: tuple[str, ...]


def join_joints(truth: Skeleton, answer: Skeleton) -> JoinedJoints:
    """Join two skeletons by joint name. Raises EvaluationError when they share no joint."""
    places = truth.indices_in(answer)
    shared = [k for k, place in enumerate(places) if place >= 0]
    if not shared:
        raise EvaluationError(f"{truth.name} and the model's {answer.name} have no joint in common")
    return JoinedJoints(
        names=tuple(truth.joints[k] for k in shared),
        sigmas=tuple(truth.sigmas[k] for k in shared),
        in_truth=tuple(shared),
        in_answer=tuple(places[k] for k in shared),
        left_out=tuple(joint for joint, place in zip(truth.joints, places, strict=True) if place < 0),
    )


@dataclass(frozen=True)
class Ranking:
    """All answered people of a data set from the best score down, and which truth they hit.

    Attributes:
        picture: [D] index of the picture each is in.
        matched: bool [T, D], at each of T thresholds.
        ignored: bool [T, D], counts neither way (crowds).
        positives: [I] people to be found in each picture.
    """

    picture: npt.NDArray[np.intp]
    matched: npt.NDArray[np.bool_]
    ignored: npt.NDArray[np.bool_]
    positives: npt.NDArray[np.intp]

    def precision(self, counts: npt.NDArray[np.intp] | None = None) -> Array:
        """AP at each threshold: precision at 101 recalls, averaged.

        Args:
            counts: [I] how often each picture counts; None for once. It is what pycocotools gives for a data set
                with these pictures repeated (people of one picture with the same score may change places).

        Returns:
            float64 [T]; NaN when there is nobody to be found.
        """
        times = np.ones(len(self.positives), np.intp) if counts is None else counts
        positives = int(self.positives @ times)
        if positives == 0:
            return np.full(len(self.matched), np.nan)
        order = np.repeat(np.arange(len(self.picture)), times[self.picture])
        counted = ~self.ignored[:, order]
        hits = np.cumsum(self.matched[:, order] & counted, axis=1)
        precision = hits / (np.cumsum(counted, axis=1) + np.spacing(1.0))
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recalls = np.linspace(0.0, 1.0, 101)
        averages = np.zeros(len(self.matched))
        for t, recall in enumerate(hits / positives):
            first = np.searchsorted(recall, recalls, side="left")
            averages[t] = envelope[t, first[first < len(order)]].sum() / len(recalls)
        return averages

    def spread(self, resamples: int, rng: np.random.Generator) -> dict[str, float] | None:
        """Standard deviation of AP and AP50 over data sets drawn anew from these pictures; None with too few."""
        pictures = len(self.positives)
        drawn = [self.precision(np.bincount(rng.integers(0, pictures, pictures), minlength=pictures)) for _ in
                 range(resamples if pictures > 1 else 0)]  # fmt: skip
        usable = np.array([averages for averages in drawn if not np.isnan(averages).any()])
        if len(usable) < 2:
            return None
        return {"AP": float(usable.mean(1).std(ddof=1)), "AP50": float(usable[:, 0].std(ddof=1))}


@dataclass(frozen=True)
class CocoFigures:
    """pycocotools' figures by name (None where the data set has nobody of that size), and the ranking behind AP."""

    figures: dict[str, float | None]
    ranking: Ranking


def keypoint_figures(
    images: Sequence[ImageRecord], answers: Sequence[PictureAnswer], joints: JoinedJoints
) -> CocoFigures:
    """The ten COCO keypoint figures; the 20 best people of each picture count, as COCO has it.

    Args:
        images: the truth, every person of each picture labelled. People without labelled joints are ignored.
        answers: one for each picture, in the same order; people in the model's joints.
        joints: how both are joined.
    """
    truth, results = [], keypoint_results(answers, joints)
    for image in images:
        for person in image.people:
            keypoints = person.keypoints[list(joints.in_truth)]
            truth.append(
                {
                    "image_id": image.id,
                    "keypoints": keypoints.ravel().tolist(),
                    "num_keypoints": int((keypoints[:, 2] > 0).sum()),
                    "bbox": _xywh(person.box),
                    "area": person.area,
                    "iscrowd": int(person.crowd),
                }
            )
    evaluation = _evaluate("keypoints", images, truth, results, joints.sigmas)
    figures = {name: _figure(evaluation.stats[k]) for k, name in enumerate(KEYPOINT_FIGURES)}
    return CocoFigures(figures, _ranking(evaluation, len(images)))


def box_figures(images: Sequence[ImageRecord], answers: Sequence[PictureAnswer]) -> CocoFigures:
    """Person-box AP and AR of the people answered, ranked by box score; the 100 best of each picture count.

    A person of the answer has survived OKS-NMS too: this is the service's box AP, not the bare detector's.
    """
    truth = [
        {"image_id": image.id, "bbox": _xywh(person.box), "area": person.area, "iscrowd": int(person.crowd)}
        for image in images
        for person in image.people
    ]
    results = [
        {"image_id": answer.id, "category_id": 1, "bbox": _xywh(box), "score": float(score)}
        for answer in answers
        for box, score in zip(answer.people.boxes, answer.people.box_scores, strict=True)
    ]
    evaluation = _evaluate("bbox", images, truth, results)
    figures = {name: _figure(evaluation.stats[k]) for name, k in BOX_FIGURES.items()}
    return CocoFigures(figures, _ranking(evaluation, len(images)))


def keypoint_results(answers: Sequence[PictureAnswer], joints: JoinedJoints) -> list[JsonObject]:
    """The results list that ``loadRes`` takes: the joined joints in the data set's order, third value their score."""
    return [
        {
            "image_id": answer.id,
            "category_id": 1,
            "keypoints": keypoints[list(joints.in_answer)].ravel().tolist(),
            "score": float(score),
        }
        for answer in answers
        for keypoints, score in zip(answer.people.keypoints, answer.people.scores, strict=True)
    ]


def _evaluate(
    kind: str,
    images: Sequence[ImageRecord],
    truth: list[JsonObject],
    results: list[JsonObject],
    sigmas: Sequence[float] | None = None,
) -> Any:
    """pycocotools' COCOeval, evaluated, accumulated and summarized."""
    dataset = COCO()
    dataset.dataset = {
        "images": [{"id": image.id, "width": image.width, "height": image.height} for image in images],
        "annotations": [{**person, "id": number, "category_id": 1} for number, person in enumerate(truth, start=1)],
        "categories": [_CATEGORY],
    }
    # pycocotools prints its progress.
    with contextlib.redirect_stdout(io.StringIO()):
        dataset.createIndex()
        if results:
            found = dataset.loadRes(results)
        else:  # loadRes looks at the first entry
            found = COCO()
            found.dataset = {**dataset.dataset, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(dataset, found, kind)
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = np.array(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _ranking(evaluation: Any, pictures: int) -> Ranking:
    """Collect pycocotools' matches of people of all sizes."""
    # evalImgs is ordered by area range, then picture; the first range is "all".
    by_picture = evaluation.evalImgs[:pictures]
    found = [(k, entry) for k, entry in enumerate(by_picture) if entry is not None]
    thresholds = len(evaluation.params.iouThrs)
    scores = np.concatenate([[], *(entry["dtScores"] for _, entry in found)])
    best_first = np.argsort(-scores, kind="stable")
    nobody = np.zeros((thresholds, 0))
    picture = np.concatenate([[], *(np.full(len(entry["dtScores"]), k) for k, entry in found)]).astype(np.intp)
    positives = np.zeros(pictures, np.intp)
    for k, entry in found:
        positives[k] = np.count_nonzero(np.asarray(entry["gtIgnore"]) == 0)
    return Ranking(
        picture=picture[best_first],
        matched=np.concatenate([nobody, *(e["dtMatches"] for _, e in found)], 1)[:, best_first].astype(bool),
        ignored=np.concatenate([nobody, *(e["dtIgnore"] for _, e in found)], 1)[:, best_first].astype(bool),
        positives=positives,
    )


def _figure(value: float) -> float | None:
    # pycocotools writes -1 where there is nobody to be found.
    return float(value) if value > -1 else None


def _xywh(box: Array) -> list[float]:
    x1, y1, x2, y2 = box.tolist()
    return [x1, y1, x2 - x1, y2 - y1]
