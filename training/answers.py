"""Answers to measure: the same pictures and options through the pipeline in process, or a live service over HTTP.

Both ways end in the same COCO document (rounded alike), so that both give the same figures.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from service import coco
from service.catalogue import list_models
from service.client import AsyncPoseClient, PoseImage, ProblemError
from service.engine_choice import open_engine
from service.engines.base import Engine
from service.options import PoseOptions
from service.people import People
from service.pipeline import PosePipeline
from service.settings import Settings
from service.skeletons import Skeleton
from service.steps import Picture

JsonObject = dict[str, Any]
Array = npt.NDArray[np.float64]

# A service that is busy with others is asked again; its own Retry-After decides the pause.
_RETRIES = 8
_LATE = 504


class EvaluationError(ValueError):
    """Something that cannot be measured; the message says what and why."""


@dataclass(frozen=True)
class Question:
    """One picture to ask about.

    Attributes:
        id: the data set's image id.
        path: the file.
        boxes: float64 [P, 4] x1 y1 x2 y2 of the people to pose; None lets the service find them.
    """

    id: int
    path: Path
    boxes: Array | None = None


@dataclass(frozen=True)
class PictureAnswer:
    """What came back: the picture's people (joints in the model's order), its upright size, and how long it took."""

    id: int
    width: int
    height: int
    people: People
    seconds: float


@dataclass(frozen=True)
class ModelFacts:
    """What has to be known of the model that answers: its skeleton, and the lowest box score it serves by default."""

    skeleton: Skeleton
    box_threshold: float


class AnsweringService(ABC):
    """Whoever answers. Used as an async context manager."""

    #: Shown in the report.
    name: str

    @abstractmethod
    async def __aenter__(self) -> AnsweringService: ...

    @abstractmethod
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @abstractmethod
    async def models(self) -> list[JsonObject]:
        """What ``GET /v1/models`` lists."""

    @abstractmethod
    async def ask(self, question: Question, data: bytes, options: PoseOptions) -> JsonObject:
        """The COCO document of one picture."""


class InProcess(AnsweringService):
    """The service's pipeline in this process."""

    def __init__(self, settings: Settings | None = None, engine: Engine | None = None) -> None:
        """``engine``: the one that the settings name when None; started here and closed at the end."""
        self._settings = settings or Settings()
        self._engine = engine or open_engine(self._settings)
        self._pipeline = PosePipeline(self._engine, self._settings)
        self.name = f"{self._engine.kind} engine in process"

    async def __aenter__(self) -> InProcess:
        await self._engine.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._engine.close()
        self._pipeline.close()

    async def models(self) -> list[JsonObject]:
        """The engine's models."""
        return await list_models(self._engine)

    async def ask(self, question: Question, data: bytes, options: PoseOptions) -> JsonObject:
        """Raises ServiceError."""
        answer = await self._pipeline.run([Picture(data, question.id, question.boxes)], options)
        return coco.document(answer.pictures, answer.pose.skeleton, answer.options.score_threshold or 0.0, {})


class OverHttp(AnsweringService):
    """A live service."""

    def __init__(self, url: str, api_key: str | None = None, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._client = AsyncPoseClient(url, api_key, retries=_RETRIES, transport=transport)
        self.name = url

    async def __aenter__(self) -> OverHttp:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def models(self) -> list[JsonObject]:
        """Raises ClientError."""
        listed: list[JsonObject] = (await self._client.models())["models"]
        return listed

    async def ask(self, question: Question, data: bytes, options: PoseOptions) -> JsonObject:
        """Raises ClientError; EvaluationError with advice when the service's deadline passes."""
        image = PoseImage(data, question.id, None if question.boxes is None else _xywh(question.boxes))
        given = options.model_dump(exclude_none=True, exclude={"format"})
        try:
            return await self._client.pose(image, **given)
        except ProblemError as problem:
            if problem.status != _LATE:
                raise
            raise EvaluationError(
                f"{problem} for picture {question.id}: ask about fewer pictures at a time (--in-flight), or start the "
                "service with a larger TRITONPOSE_DEADLINE_SECONDS"
            ) from problem


async def find_model(service: AnsweringService, name: str) -> ModelFacts:
    """The facts of a pose model. Raises EvaluationError when there is none of that name."""
    models = {model["name"]: model for model in await service.models()}
    posing = sorted(other for other, model in models.items() if model["kind"] == "pose")
    if name not in posing:
        raise EvaluationError(f"{service.name} has no pose model {name!r}; there are {', '.join(posing) or 'none'}")
    described = models[name]["skeleton"]
    skeleton = Skeleton(
        name=described["preset"],
        joints=tuple(described["keypoints"]),
        edges=tuple((a - 1, b - 1) for a, b in described["skeleton"]),
        sigmas=tuple(described["sigmas"]),
    )
    detector = models[models[name]["parameters"]["detector"]]
    return ModelFacts(skeleton, float(detector["parameters"]["box_threshold"]))


async def answer_all(
    service: AnsweringService,
    questions: Sequence[Question],
    options: PoseOptions,
    in_flight: int,
    advance: Callable[[], None],
) -> list[PictureAnswer]:
    """Ask about every picture, several at a time; answers in the order of the questions.

    Args:
        service: entered already.
        questions: the pictures.
        options: the same for all.
        in_flight: pictures asked about at a time.
        advance: called once for each picture answered.

    Raises:
        EvaluationError: a picture file cannot be read.
        ServiceError, ClientError: the first picture that fails ends it all.
    """
    answers: list[PictureAnswer | None] = [None] * len(questions)

    async def work(index: int) -> None:
        answers[index] = await _answer(service, questions[index], options)
        advance()

    await several_at_a_time(len(questions), work, in_flight)
    return [answer for answer in answers if answer is not None]


async def several_at_a_time(count: int, work: Callable[[int], Awaitable[None]], in_flight: int) -> None:
    """Await ``work(0)`` to ``work(count - 1)``, at most ``in_flight`` at a time; the first error ends all of them."""
    remaining = iter(range(count))

    async def worker() -> None:
        for index in remaining:
            await work(index)

    workers = [asyncio.ensure_future(worker()) for _ in range(min(in_flight, count))]
    try:
        await asyncio.gather(*workers)
    finally:
        for each in workers:
            each.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def _answer(service: AnsweringService, question: Question, options: PoseOptions) -> PictureAnswer:
    try:
        data = await asyncio.to_thread(question.path.read_bytes)
    except OSError as error:
        raise EvaluationError(f"picture {question.id}: {error}") from error
    started = time.perf_counter()
    document = await service.ask(question, data, options)
    return read_document(document, time.perf_counter() - started)


def read_document(document: JsonObject, seconds: float) -> PictureAnswer:
    """The one picture of a COCO document as the service answers it."""
    (image,) = document["images"]
    people = document["annotations"]
    joints = len(document["categories"][0]["keypoints"])
    keypoints = np.array([person["keypoints"] for person in people], np.float64).reshape(-1, joints, 3)
    keypoints[..., 2] = np.array([person["keypoint_scores"] for person in people]).reshape(-1, joints)
    boxes = np.array([person["bbox"] for person in people], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    found = People(
        boxes=boxes,
        box_scores=np.array([person["box_score"] for person in people], np.float64),
        keypoints=keypoints,
        scores=np.array([person["score"] for person in people], np.float64),
    )
    return PictureAnswer(image["id"], image["width"], image["height"], found, seconds)


def _xywh(boxes: Array) -> list[list[float]]:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
