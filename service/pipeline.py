"""The pipeline: pictures in, people out. One detector call for a group of pictures, one pose call for a picture.

    headers -> decode, letterbox -> detector -> NMS, crops -> pose -> back to the picture, scores, OKS-NMS

Serving, the command line and ``training evaluate`` all run this code. Work on pixels (:mod:`service.steps`) happens
in a bounded pool of threads (OpenCV and NumPy let go of the interpreter lock), so the event loop stays free.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar

import cv2
import numpy as np

from service.engines.base import Ask, Engine, Models, Tensors
from service.errors import InferenceFailed, InvalidOption, ModelNotFound
from service.image_header import ImageHeader
from service.metrics import Metrics
from service.options import PoseOptions
from service.people import People, PosedPicture
from service.pixel_budget import PixelBudget
from service.presets import DetectorPreset, PosePreset, Presets
from service.settings import Settings
from service.stages import Stages
from service.steps import (
    Candidates,
    Given,
    Opened,
    Picture,
    answer_people,
    cut_crops,
    find_crops,
    open_picture,
    read_headers,
)
from service.threads import Threads

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# Arithmetic on this many people takes 0.2 ms and holds the interpreter lock throughout: a thread would add two
# switches (5 ms each on cores that are busy inferring) and take nothing off the event loop.
FEW_PEOPLE = 32
# Times that a request is begun anew because its models were replaced under it: a second one is rare, a third a fault.
_REPLACED_UNDER_A_REQUEST = 2
# A server that changes a model's tensors is without it while the new one is loaded. Longer than this, and it is gone.
_GAP_SECONDS = 15.0
_GAP_PAUSE = 0.2
# Pictures of one detector call: enough to fill a batch, few enough that their pixels do not pile up.
_GROUP = 16
# A picture alone, of at most so many pixels, goes the engine's way where the engine has one: it is decoded in the time
# that a network takes for a row. Longer work would keep other callers' networks waiting, and may as well wake a thread.
_FOLLOWED_PIXELS = 2_000_000
# What a picture to draw on takes of the budget: it, and up to three copies of a file as large as it (noise as PNG).
_DRAWN = 2


@dataclass(frozen=True)
class Answer:
    """What a request gets.

    Attributes:
        pictures: in the order given.
        options: with the model's defaults filled in.
        pose: the model that answered.
    """

    pictures: list[PosedPicture]
    options: PoseOptions
    pose: PosePreset


class PosePipeline:
    """Pictures to people over an engine. Safe for many requests of one event loop at a time."""

    def __init__(self, engine: Engine, settings: Settings, metrics: Metrics | None = None) -> None:
        # Threads come from the pool and the engine; OpenCV's own would fight with them over the same cores.
        cv2.setNumThreads(1)
        self.engine = engine
        self.presets = Presets(engine)
        self.reduces = settings.reduced_decoding
        self._settings = settings
        self._metrics = metrics
        self._threads = Threads(settings.cpu_threads, "pixels")
        self._budget = PixelBudget(max(settings.pixel_budget, settings.max_pixels))

    async def run(
        self,
        pictures: Sequence[Picture],
        options: PoseOptions,
        stages: Stages | None = None,
        *,
        headers: Sequence[ImageHeader] | None = None,
        keep_pixels: bool = False,
        until: AsyncExitStack | None = None,
        models: Models | None = None,
        deadline: float | None = None,
    ) -> Answer:
        """Find the people of every picture.

        All of a request is answered by one state of the models. Where the engine cannot keep that state for it (a
        Triton server that replaces a model), the request is run anew with the new one.

        Args:
            pictures: encoded pictures.
            options: validated options.
            stages: gets the seconds of each stage; None when nobody asks.
            headers: what :meth:`read_headers` gave for these pictures, when it was called before.
            keep_pixels: hand the decoded pictures back too, for drawing.
            until: takes over what one picture has of the pixel budget, until its pixels are drawn on and let go.
            models: that answer; those that the engine serves now when None.
            deadline: by the event loop's clock; each engine call gets what is left. None for no limit.

        Raises:
            InvalidImage, TooLarge, UnsupportedMedia: with the ``image_index`` of the first bad picture.
            InvalidOption: options that do not fit the model.
            EngineUnavailable, ModelNotFound, InferenceFailed, DeadlineExceeded: from the engine.
        """
        stages = stages if stages is not None else Stages()
        if until is not None and len(pictures) != 1:
            raise ValueError(f"{len(pictures)} pictures: the second would wait for what the first holds")
        if models is not None:
            presets = await self.presets.find(options.model, models)
            return await self._run(pictures, options, stages, headers, keep_pixels, until, models, presets, deadline)
        arguments = (pictures, options, stages, headers, keep_pixels, until)
        clock = asyncio.get_running_loop().time
        gap_ends: float | None = None
        replaced = 0
        while True:
            if self.engine.has_gaps:
                await self._found(options.model, deadline)
            with self.engine.hold() as held:
                before = await self.presets.find(options.model, held)
                try:
                    return await self._run(*arguments, held, before, deadline)
                except (ModelNotFound, InferenceFailed, ValueError) as error:
                    # Tensors that do not fit, or a version that is gone: was it another model than the one asked for?
                    if await self._found(options.model, deadline) != before and replaced < _REPLACED_UNDER_A_REQUEST:
                        replaced += 1
                        continue
                    # The ensemble is still the old one, but a part of it is gone: the new ones are on their way.
                    gap_ends = gap_ends or clock() + _GAP_SECONDS
                    late = clock() > gap_ends or (deadline is not None and clock() > deadline)
                    if late or not (self.engine.has_gaps and isinstance(error, ModelNotFound)):
                        raise
            await asyncio.sleep(_GAP_PAUSE)

    async def _found(self, name: str, deadline: float | None) -> tuple[PosePreset, DetectorPreset]:
        """The model's presets; one that is gone from a server that may be replacing it is waited for."""
        clock = asyncio.get_running_loop().time
        end = clock() + _GAP_SECONDS
        if deadline is not None:
            end = min(end, deadline)
        while True:
            try:
                return await self.presets.find(name)
            except ModelNotFound:
                if not self.engine.has_gaps or not self.presets.knows(name):
                    raise
                if clock() > end:
                    self.presets.forget(name)
                    raise
            await asyncio.sleep(_GAP_PAUSE)

    async def _run(
        self,
        pictures: Sequence[Picture],
        options: PoseOptions,
        stages: Stages,
        headers: Sequence[ImageHeader] | None,
        keep_pixels: bool,
        until: AsyncExitStack | None,
        models: Models,
        presets: tuple[PosePreset, DetectorPreset],
        deadline: float | None,
    ) -> Answer:
        pose, detector = presets
        options = fill_in(options, pose, detector)
        run = _Run(options, pose, detector, stages, keep_pixels or not self.reduces, keep_pixels)
        if headers is None:
            headers = await self.off_loop(self.read_headers, pictures, stages)
        answers: list[PosedPicture] = []
        for group in self._groups(headers):
            given = [Given(index, pictures[index], headers[index]) for index in group]
            cost = sum(headers[index].cost for index in group)
            if until is None:
                async with self._budget.hold(cost):
                    answers += await self._send(run, given, models, deadline)
            else:
                async with AsyncExitStack() as stack:
                    await stack.enter_async_context(self._budget.hold(max(cost, _DRAWN * headers[0].pixels)))
                    answers += await self._send(run, given, models, deadline)
                    until.push_async_exit(stack.pop_all())
        return Answer(answers, options, pose)

    async def _send(
        self, run: _Run, group: Sequence[Given], models: Models, deadline: float | None
    ) -> list[PosedPicture]:
        """Send a group the way that suits it."""
        if not models.follows or len(group) > 1 or group[0].header.cost > _FOLLOWED_PIXELS:
            return await run.group(group, _LoopWay(self, models, deadline))
        left = None if deadline is None else deadline - asyncio.get_running_loop().time()
        return await models.follow(lambda ask: run.group(group, _EngineWay(self, ask)), run.pose_model, timeout=left)

    def read_headers(self, pictures: Sequence[Picture], stages: Stages) -> list[ImageHeader]:
        """Check every picture's header before the first is decoded; for a thread of :meth:`off_loop`.

        Raises:
            InvalidImage, TooLarge, UnsupportedMedia: with the ``image_index`` of the first bad picture.
        """
        with stages.measure("decode"):
            return read_headers(pictures, self._settings.max_image_bytes, self._settings.max_pixels)

    async def infer(self, models: Models, model: str, inputs: Tensors, deadline: float | None) -> dict[str, Any]:
        """One engine call, counted; it may take until ``deadline`` (event loop's clock)."""
        self.count_call(model, inputs)
        left = None if deadline is None else deadline - asyncio.get_running_loop().time()
        return await models.infer(model, inputs, timeout=left)

    def count_call(self, model: str, inputs: Tensors) -> None:
        """Tell the metrics; in any thread."""
        if self._metrics:
            self._metrics.engine_called(model, len(next(iter(inputs.values()))))

    async def off_loop(
        self, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Run CPU work in the bounded pool of threads."""
        return await self._threads.run(work, *args, **kwargs)

    def close(self) -> None:
        """Let the threads end; the engine is closed by whoever opened it."""
        self._threads.close()

    def _groups(self, headers: Sequence[ImageHeader]) -> Iterator[list[int]]:
        """Consecutive pictures that go through together: at most 16, and not more pixels than one large picture."""
        group: list[int] = []
        pixels = 0
        for index, header in enumerate(headers):
            if group and (len(group) == _GROUP or pixels + header.cost > self._settings.max_pixels):
                yield group
                group, pixels = [], 0
            group.append(index)
            pixels += header.cost
        if group:
            yield group


class _Way(Protocol):
    """Who does the work of a group of pictures."""

    async def pixels(self, work: Callable[..., Result], *args: object) -> Result:
        """Do work on pixels."""

    async def infer(self, model: str, inputs: Tensors) -> dict[str, Any]:
        """Ask a model."""


class _LoopWay:
    """The event loop hands work on pixels to the pool of threads and networks to the engine."""

    def __init__(self, pipeline: PosePipeline, models: Models, deadline: float | None) -> None:
        self._pipeline, self._models, self._deadline = pipeline, models, deadline

    async def pixels(self, work: Callable[..., Result], *args: object) -> Result:
        return await self._pipeline.off_loop(work, *args)

    async def infer(self, model: str, inputs: Tensors) -> dict[str, Any]:
        return await self._pipeline.infer(self._models, model, inputs, self._deadline)


class _EngineWay:
    """The engine's threads do everything, one after the other."""

    def __init__(self, pipeline: PosePipeline, ask: Ask) -> None:
        self._pipeline, self._ask = pipeline, ask

    async def pixels(self, work: Callable[..., Result], *args: object) -> Result:
        return work(*args)

    async def infer(self, model: str, inputs: Tensors) -> dict[str, Any]:
        self._pipeline.count_call(model, inputs)
        return await self._ask(model, inputs)


class _Run:
    """One request on its way: what is the same for all its pictures."""

    def __init__(
        self,
        options: PoseOptions,
        pose: PosePreset,
        detector: DetectorPreset,
        stages: Stages,
        whole: bool,
        keep_pixels: bool,
    ) -> None:
        """``whole``: pictures are decoded whole, however large they are."""
        self.options, self.stages, self.whole, self.keep_pixels = options, stages, whole, keep_pixels
        self.pose, self.detector = pose, detector
        self.pose_model = pose.ensemble(bool(options.flip))
        self.weights = np.array(options.fusion, np.float32)

    async def group(self, group: Sequence[Given], way: _Way) -> list[PosedPicture]:
        """Decode some pictures at a time, detect in one call, then pose each picture's people in one call."""
        shown = (self.detector, self.pose, self.whole, self.stages)
        opened = await _in_order([way.pixels(open_picture, given, *shown) for given in group])
        found = iter(await self._detect([one.square for one in opened if one.square is not None], way))
        return await _in_order(
            [self._pose(one, next(found) if one.square is not None else None, way) for one in opened]
        )

    async def _detect(self, squares: Sequence[np.ndarray[Any, Any]], way: _Way) -> list[Candidates]:
        if not squares:
            return []
        batch = squares[0][None] if len(squares) == 1 else np.stack(squares)
        with self.stages.measure("detector"):
            outputs = await way.infer(self.detector.name, {"images": batch})
        return list(zip(outputs["boxes"], outputs["scores"], strict=True))

    async def _pose(self, opened: Opened, candidates: Candidates | None, way: _Way) -> PosedPicture:
        options, stages = self.options, self.stages
        picture = opened.given.picture
        if candidates is not None:
            crops = await way.pixels(find_crops, opened, candidates, options, self.pose, stages)
        else:
            boxes = np.asarray(picture.boxes, np.float64).reshape(-1, 4)
            crops = await way.pixels(cut_crops, opened, boxes, np.ones(len(boxes)), self.pose, stages)
        people = People.nobody(len(self.pose.skeleton))
        if len(crops.boxes):
            weights = self.weights[None].repeat(len(crops.boxes), 0)
            with stages.measure("pose"):
                inputs: Tensors = {"crops": crops.pixels, "fusion_weights": weights}
                outputs = await way.infer(self.pose_model, inputs)
            work = partial(
                answer_people, outputs["keypoints"], crops, options, self.pose, stages, suppress=candidates is not None
            )
            people = work() if len(crops.boxes) <= FEW_PEOPLE else await way.pixels(work)
        pyramid = opened.pyramid
        pixels = pyramid.level(0) if self.keep_pixels else None
        return PosedPicture(picture.id, pyramid.width, pyramid.height, people, pixels)


def fill_in(options: PoseOptions, pose: PosePreset, detector: DetectorPreset) -> PoseOptions:
    """Check what only the model knows, and replace what is None by its defaults. Raises InvalidOption."""
    fusion = options.fusion or (1.0,) * len(pose.radii)
    if len(fusion) != len(pose.radii):
        raise InvalidOption(
            f"fusion: model {pose.name!r} has {len(pose.radii)} radii ({', '.join(pose.radii)}), "
            f"got {len(fusion)} weights"
        )
    if options.flip and pose.flip_model is None:
        raise InvalidOption(f"flip: model {pose.name!r} has no ensemble that averages with the mirrored crop")
    return options.model_copy(
        update={
            "fusion": fusion,
            "flip": pose.flip if options.flip is None else options.flip,
            "score_threshold": pose.score_threshold if options.score_threshold is None else options.score_threshold,
            "box_threshold": detector.box_threshold if options.box_threshold is None else options.box_threshold,
        }
    )


async def _in_order(work: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """All results, or the first error *in order* once all have ended, so that the same request fails the same way."""
    if len(work) == 1:
        return [await work[0]]
    results = await asyncio.gather(*work, return_exceptions=True)
    answers: list[Result] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        answers.append(result)
    return answers
