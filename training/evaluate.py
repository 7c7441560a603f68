"""Measure what is served: ``python -m training evaluate``, in process or on a live service.

Pictures go through the service's own pipeline, or over HTTP; nothing here detects, crops or decodes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from service.options import PoseOptions
from training.answers import (
    AnsweringService,
    EvaluationError,
    ModelFacts,
    PictureAnswer,
    Question,
    answer_all,
    find_model,
)
from training.datasets import read_set
from training.datasets.coco import CocoSet, ImageRecord
from training.metrics.aic import aic_score
from training.metrics.coco import CocoFigures, JoinedJoints, box_figures, join_joints, keypoint_figures
from training.metrics.crowding import crowd_figures
from training.metrics.joint_errors import joint_errors
from training.metrics.pck import Pair, Pck, count_correct, labelled_people, pair_by_overlap, pair_in_order
from training.metrics.pckh import count_within_heads
from training.recipe import DataSource, Format, Strict
from training.reliability import reliability

JsonObject = dict[str, Any]

Metric = Literal["coco", "aic", "pckh", "crowdpose", "pck"]
# What each data set's own challenge is decided by.
_OWN_METRIC: dict[Format, Metric] = {
    "coco": "coco",
    "aic": "aic",
    "mpii": "pckh",
    "lsp": "pck",
    "crowdpose": "crowdpose",
    "ochuman": "coco",
}


class EvaluationSource(DataSource):
    """One data set to measure on."""

    metric: Metric | None = Field(
        None,
        description="the data set's own figure, beside COCO's and PCK where those can be told: AI Challenger's score, "
        "PCKh, AP by crowding; default by format",
    )
    all_labelled: bool = Field(
        True, description="false: pictures may show people without a label, so nothing that is found counts as false"
    )

    @property
    def own_metric(self) -> Metric:
        """The metric that was asked for, or the format's."""
        return self.metric or _OWN_METRIC[self.format]


class EvaluationRecipe(Strict):
    """All that a measurement depends on, but for who answers."""

    data: tuple[EvaluationSource, ...] = Field(min_length=1)
    boxes: Literal["detector", "truth"] = Field(
        "detector", description="truth: the annotated boxes of the people with labelled joints are posed"
    )
    options: PoseOptions = Field(PoseOptions(), description="the service's options, the same for every picture")
    limit: int | None = Field(None, ge=1, description="pictures of each set, spread evenly over it; none for all")
    resamples: int = Field(200, ge=0, description="bootstrap data sets for the spreads; 0 for no spread")
    seed: int = Field(0, description="of the bootstrap")
    in_flight: int = Field(2, ge=1, description="pictures asked about at a time")


class OwnFigures(Protocol):
    """A data set's own measure."""

    @property
    def name(self) -> str:
        """Its key in the summary."""
        ...

    def summary(self, resamples: int, rng: np.random.Generator) -> JsonObject:
        """As it goes into the report."""
        ...


@dataclass(frozen=True)
class Measured:
    """One data set, what was answered, and the figures.

    Attributes:
        data: the set, only with the pictures that were asked about.
        answers: one for each of its pictures.
        pairs: its labelled people with their answers.
        joints: how its skeleton is joined with the model's.
        keypoints, boxes, pck, own: None where the set cannot tell.
        seconds: wall time for all pictures.
    """

    data: CocoSet
    answers: list[PictureAnswer]
    pairs: list[Pair]
    joints: JoinedJoints
    keypoints: CocoFigures | None
    boxes: CocoFigures | None
    pck: Pck | None
    seconds: float
    own: OwnFigures | None = None


@dataclass(frozen=True)
class Evaluation:
    """A whole measurement."""

    service: str
    model: ModelFacts
    recipe: EvaluationRecipe
    sets: list[Measured]


async def evaluate(recipe: EvaluationRecipe, service: AnsweringService, console: Console) -> Evaluation:
    """Ask about every picture of the recipe and compute the figures.

    Args:
        recipe: what to measure.
        service: who answers; entered and left here.
        console: shows the progress.

    Raises:
        DatasetError, EvaluationError: data that cannot be used.
        ServiceError, ClientError: the service cannot answer.
    """
    chosen = [limited(read_set(source), recipe.limit) for source in recipe.data]
    if len({data.name for data in chosen}) < len(chosen):
        raise EvaluationError(f"two sets have the same file name: {', '.join(data.name for data in chosen)}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())  # fmt: skip
    sets = []
    async with service:
        model = await find_model(service, recipe.options.model)
        with Progress(*columns, console=console) as progress:
            for source, data in zip(recipe.data, chosen, strict=True):
                task = progress.add_task(data.name, total=len(data.images))
                started = time.perf_counter()
                options = served_options(recipe, model, source.all_labelled)
                questions = [Question(image.id, image.path, _given_boxes(recipe, image)) for image in data.images]
                answers = await answer_all(
                    service, questions, options, recipe.in_flight, partial(progress.advance, task)
                )
                seconds = time.perf_counter() - started
                sets.append(
                    await asyncio.to_thread(
                        measure, recipe, model, data, answers, source.all_labelled, seconds, source.own_metric
                    )
                )
    return Evaluation(service.name, model, recipe, sets)


def measure(
    recipe: EvaluationRecipe,
    model: ModelFacts,
    data: CocoSet,
    answers: list[PictureAnswer],
    all_labelled: bool,
    seconds: float = 0.0,
    metric: Metric = "coco",
) -> Measured:
    """Figures of one set.

    Keypoint AP needs every person of a picture labelled, or the labelled boxes given; box AP needs the former and
    boxes that were found; so do AI Challenger's score and AP by crowding. PCK needs the torso labelled, PCKh the head.
    """
    joints = join_joints(data.skeleton, model.skeleton)
    given = recipe.boxes == "truth"
    pairs: list[Pair] = []
    for index, (image, answer) in enumerate(zip(data.images, answers, strict=True)):
        _check_size(image, answer)
        if given:
            pairs += pair_in_order(index, image, answer.people)
        else:
            pairs += pair_by_overlap(index, image, answer.people, model.box_threshold)
    whole = [k for k, image in enumerate(data.images) if all_labelled and image.complete]
    counted = list(range(len(data.images))) if given else whole
    return Measured(
        data=data,
        answers=answers,
        pairs=pairs,
        joints=joints,
        keypoints=keypoint_figures(_at(data.images, counted), _at(answers, counted), joints) if counted else None,
        boxes=box_figures(_at(data.images, whole), _at(answers, whole)) if whole and not given else None,
        pck=count_correct(pairs, len(data.images), data.skeleton, joints),
        seconds=seconds,
        own=_own_figures(metric, data, answers, counted, pairs, joints, 0.0 if given else model.box_threshold),
    )


def _own_figures(
    metric: Metric,
    data: CocoSet,
    answers: list[PictureAnswer],
    counted: list[int],
    pairs: list[Pair],
    joints: JoinedJoints,
    box_threshold: float,
) -> OwnFigures | None:
    """The data set's own measure over the pictures that count; None where the set cannot tell."""
    if metric == "pckh":
        return count_within_heads(pairs, len(data.images), joints)
    if metric in ("coco", "pck") or not counted:
        return None
    images, found = _at(data.images, counted), _at(answers, counted)
    if metric == "crowdpose":
        return crowd_figures(images, found, joints)
    return aic_score(images, found, joints, box_threshold)


def summarize(evaluation: Evaluation) -> JsonObject:
    """Everything as one JSON object; the spreads are standard deviations over pictures drawn anew."""
    recipe = evaluation.recipe
    return {
        "service": evaluation.service,
        "boxes": recipe.boxes,
        "options": recipe.options.echo(),
        "skeleton": evaluation.model.skeleton.name,
        "in_flight": recipe.in_flight,
        "sets": {measured.data.name: _summarize_set(measured, recipe) for measured in evaluation.sets},
    }


def served_options(recipe: EvaluationRecipe, model: ModelFacts, all_labelled: bool) -> PoseOptions:
    """The options for one set: the recipe's, but no boxes under the served threshold where only PCK is measured.

    PCK looks at none of them, and posing them takes several times as long as the rest.
    """
    options = recipe.options
    if all_labelled or recipe.boxes == "truth":
        return options
    return options.model_copy(update={"box_threshold": max(options.box_threshold or 0.0, model.box_threshold)})


def limited(data: CocoSet, limit: int | None) -> CocoSet:
    """The set with at most ``limit`` pictures, spread evenly over it. Raises EvaluationError when it has none."""
    if not data.images:
        raise EvaluationError(f"{data.name} has no pictures")
    if limit is None or limit >= len(data.images):
        return data
    indices = np.linspace(0, len(data.images) - 1, limit).round().astype(int)
    return replace(data, images=tuple(data.images[k] for k in indices))


def _summarize_set(measured: Measured, recipe: EvaluationRecipe) -> JsonObject:
    rng = np.random.default_rng(recipe.seed)
    latencies = np.array([answer.seconds for answer in measured.answers]) * 1e3
    summary: JsonObject = {
        "pictures": len(measured.answers),
        "labelled_people": len(measured.pairs),
        "answered_people": sum(len(answer.people) for answer in measured.answers),
        "joints": list(measured.joints.names),
        "joints_left_out": list(measured.joints.left_out),
    }
    for name, found in (("keypoints", measured.keypoints), ("boxes", measured.boxes)):
        spread = found.ranking.spread(recipe.resamples, rng) if found else None
        summary[name] = {**found.figures, "spread": spread} if found else None
    summary["pck"] = measured.pck.summary(recipe.resamples, rng) if measured.pck else None
    summary["joint_errors"] = joint_errors(measured.pairs, measured.joints)
    curve = reliability(measured.pairs, measured.joints)
    summary["calibration_error"] = curve.error if curve else None
    if measured.own:
        summary[measured.own.name] = measured.own.summary(recipe.resamples, rng)
    summary["ms_per_picture"] = round(measured.seconds * 1e3 / len(measured.answers), 2)
    summary["latency_ms"] = {f"p{q}": round(float(np.percentile(latencies, q)), 2) for q in (50, 95)}
    return summary


def _given_boxes(recipe: EvaluationRecipe, image: ImageRecord) -> npt.NDArray[np.float64] | None:
    if recipe.boxes == "detector":
        return None
    boxes = np.array([person.box for person in labelled_people(image)], np.float64).reshape(-1, 4)
    # The service wants a positive size, and crops at least a pixel anyway.
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1.0)
    return boxes


def _check_size(image: ImageRecord, answer: PictureAnswer) -> None:
    if (answer.width, answer.height) != (image.width, image.height):
        raise EvaluationError(
            f"{image.path} is {answer.width} x {answer.height} when upright, "
            f"its annotations are for {image.width} x {image.height}"
        )


def _at(items: Sequence[Any], indices: Sequence[int]) -> list[Any]:
    return [items[k] for k in indices]
