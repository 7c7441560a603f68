"""Do converted networks answer what the float ones answer? Asked through the ensembles, as the service asks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from export.checkpoints import ExportError
from export.parity import Difference, Limits, difference
from export.precision.calibration import Pixels, network_input
from export.samples import Samples
from service.engines.base import Array, Engine, Tensors
from service.engines.config import ModelConfig
from service.engines.embedded import EmbeddedEngine
from service.engines.ensembles import DataFlow
from service.engines.sessions import RuntimeSettings
from service.suppression import iou_nms

Kind = Literal["pose", "detector"]
Distances = npt.NDArray[np.float64]
Run = Callable[[Tensors], Mapping[str, Array]]
_ROWS = 8
_SERVICE_NMS = 0.6

# Pixels of the network's input: median, 99th percentile; scores at the 99th. Joints count that the float network is
# sure of, boxes that the service would keep. An ambiguous joint (left or right ankle?) jumps by a limb's length when a
# score moves by 0.01, which is what INT8's 99th percentile has room for; whether it costs accuracy, AP says.
LIMITS: Mapping[tuple[str, Kind], Limits] = {
    ("fp16", "pose"): Limits(median=0.05, p99=1.0, score=0.01),
    ("fp16", "detector"): Limits(median=0.25, p99=2.0, score=0.02),
    ("int8", "pose"): Limits(median=1.0, p99=16.0, score=0.1),
    ("int8", "detector"): Limits(median=2.0, p99=24.0, score=0.2),
}


class Asked(Protocol):
    """Whoever answers by model name."""

    async def infer(self, model: str, inputs: Tensors) -> dict[str, Array]:
        """All rows of one request."""
        ...


@dataclass(frozen=True)
class Question:
    """What one model is asked: all its inputs, and from which score on an answer counts."""

    model: str
    kind: Kind
    inputs: Mapping[str, Array]
    threshold: float


class Replaced:
    """An engine's models, some networks answered by other means: what its ensembles would say with them."""

    def __init__(self, engine: Engine, configs: Mapping[str, ModelConfig], runs: Mapping[str, Run]) -> None:
        """``runs`` answers networks by name; everything else is asked of ``engine``."""
        self._engine, self._configs, self._runs = engine, configs, runs

    async def infer(self, model: str, inputs: Tensors) -> dict[str, Array]:
        """As an engine does."""
        if model in self._runs:
            return dict(await asyncio.to_thread(self._runs[model], inputs))
        config = self._configs[model]
        if not config.steps:
            return await self._engine.infer(model, inputs)
        flow = DataFlow(config, inputs)
        while not flow.finished:
            for step, tensors in flow.begin():
                flow.end(step, await self.infer(step.model, tensors))
        return flow.outputs()


def questions(
    configs: Mapping[str, ModelConfig], changed: Collection[str], samples: Samples, most: int
) -> list[Question]:
    """For every changed network: the detector itself, or the pose ensembles that it is part of.

    Raises:
        ExportError: a network of ``changed`` is neither a detector nor part of a pose ensemble.
    """
    found: list[Question] = []
    for name in changed:
        parameters = configs[name].metadata.parameters
        if parameters.get("kind") == "detector":
            pixels = network_input(configs[name].metadata, samples, most)
            inputs = {configs[name].metadata.inputs[0].name: pixels}
            found.append(Question(name, "detector", inputs, float(parameters.get("box_threshold", 0.4))))
            continue
        ensembles = [
            config
            for config in configs.values()
            if config.metadata.parameters.get("kind") == "pose" and name in {step.model for step in config.steps}
        ]
        if not ensembles:
            raise ExportError(f"{name} is no detector and in no pose ensemble: nothing tells what its answers mean")
        pixels = network_input(configs[name].metadata, samples, most)
        found += [_pose_question(config, pixels) for config in ensembles if config.metadata.name not in _names(found)]
    return found


def _pose_question(config: ModelConfig, crops: Pixels) -> Question:
    (weights,) = (spec for spec in config.metadata.inputs if spec.name == "fusion_weights")
    inputs: dict[str, Array] = {"crops": crops, "fusion_weights": np.ones((len(crops), *weights.shape), np.float32)}
    threshold = float(config.metadata.parameters.get("score_threshold", 0.2))
    return Question(config.metadata.name, "pose", inputs, threshold)


def _names(found: Sequence[Question]) -> set[str]:
    return {question.model for question in found}


async def ask(asked: Asked, wanted: Sequence[Question]) -> list[dict[str, Array]]:
    """The answers, every output [N, ...], asked a few rows at a time."""
    found = []
    for question in wanted:
        rows = len(next(iter(question.inputs.values())))
        parts = []
        for start in range(0, rows, _ROWS):
            chunk = {name: array[start : start + _ROWS] for name, array in question.inputs.items()}
            parts.append(await asked.infer(question.model, chunk))
        found.append({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    return found


async def answers_of(repository: Path, wanted: Sequence[Question]) -> list[dict[str, Array]]:
    """What a repository answers through the embedded engine. Raises ServiceError when it does not load or run."""
    engine = EmbeddedEngine(repository, RuntimeSettings())
    await engine.start()
    try:
        return await ask(engine, wanted)
    finally:
        await engine.close()


def compare(
    wanted: Sequence[Question],
    expected: Sequence[Mapping[str, Array]],
    answers: Sequence[Mapping[str, Array]],
    precision: str,
) -> list[Difference]:
    """How far the answers are from the expected ones, with the limits of ``precision`` (fp16 or int8)."""
    found = []
    for question, want, have in zip(wanted, expected, answers, strict=True):
        distances, scores = apart(question, want, have)
        what = "joints" if question.kind == "pose" else "boxes"
        found.append(difference(question.model, what, distances, scores, LIMITS[precision, question.kind]))
    return found


def apart(question: Question, want: Mapping[str, Array], have: Mapping[str, Array]) -> tuple[Distances, Distances]:
    """Distances in pixels [n] and score differences [n] of what counts; infinite where an answer is no number."""
    if question.kind == "pose":
        first, second = (answer["keypoints"].astype(np.float64) for answer in (want, have))
        counts = first[..., 2] >= question.threshold
        distances = np.linalg.norm(second[..., :2] - first[..., :2], axis=-1)[counts]
        scores = np.abs(second[..., 2] - first[..., 2])[counts]
    else:
        pairs = [_boxes_apart(question, a, b, row) for a, b in ((want, have), (have, want)) for row in _rows(want)]
        distances, scores = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return np.nan_to_num(distances, nan=np.inf), np.nan_to_num(scores, nan=np.inf)


def _rows(answer: Mapping[str, Array]) -> range:
    return range(len(answer["boxes"]))


def _boxes_apart(
    question: Question, first: Mapping[str, Array], second: Mapping[str, Array], row: int
) -> tuple[Distances, Distances]:
    """Boxes that the service would keep of the first, to the nearest box that the second has at all."""
    boxes, scores = (first[name][row].astype(np.float64) for name in ("boxes", "scores"))
    others, other_scores = (second[name][row].astype(np.float64) for name in ("boxes", "scores"))
    sure = np.flatnonzero(scores >= question.threshold)
    kept = sure[iou_nms(boxes[sure], scores[sure], _SERVICE_NMS)]
    corners = np.abs(boxes[kept, None] - others[None]).max(-1)
    nearest = corners.argmin(1)
    return corners[np.arange(len(kept)), nearest], np.abs(scores[kept] - other_scores[nearest])
