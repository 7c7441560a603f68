"""From start to ready, and from ready to gone.

The port opens at once; the service calls itself ready only after a rendered picture went through the whole
pipeline with every pose model, so the first caller pays for nothing and finds no broken model.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time

import cv2
import numpy as np
import numpy.typing as npt

from service.engines.base import Engine, Models
from service.errors import EngineUnavailable, ServiceError
from service.metrics import Metrics, State
from service.options import PoseOptions
from service.pipeline import PosePipeline
from service.scenes import render_scene
from service.stages import Stages
from service.steps import Picture

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 2.0
_ANSWER_SECONDS = 2.0


class Readiness:
    """Brings an engine up, keeps trying when it cannot, and knows what to tell who asks.

    Attributes:
        models: names of the pose models that the rehearsal went through.
        closing: connections should end with their next answer, because this process is about to.
    """

    def __init__(self, engine: Engine, pipeline: PosePipeline, metrics: Metrics) -> None:
        self._engine = engine
        self._pipeline = pipeline
        self._reason: str | None = "the models are being loaded"
        self._draining = False
        self.closing = False
        self._answers = False  # the models, when they were last asked
        metrics.watch_state(self.state)
        self.models: list[str] = []
        self._task: asyncio.Task[None] | None = None
        # What replaces models in the running engine has to pass what the first ones passed.
        engine.trial = self._try_models

    def begin(self) -> None:
        """Start bringing the engine up in the background."""
        self._task = asyncio.get_running_loop().create_task(self._bring_up())

    async def wait(self) -> None:
        """Return when the service became ready for the first time."""
        if self._task:
            await asyncio.shield(self._task)

    def drain(self) -> None:
        """Call the service not ready from now on, so that balancers stop sending; requests are still answered."""
        self._draining = self.closing = True

    async def end(self) -> None:
        """Stop trying."""
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def require_started(self) -> None:
        """Raises EngineUnavailable until the first picture went through, and while the engine is known to be gone.

        So a body that nobody could answer need not travel.
        """
        reason = self._reason or self._engine.unavailable
        if reason is not None:
            raise EngineUnavailable(reason)

    async def check(self) -> None:
        """Raises EngineUnavailable with the reason when the service is not ready for traffic."""
        if self._draining:
            raise EngineUnavailable("the service is shutting down")
        self.require_started()
        try:
            answers = await asyncio.wait_for(self._engine.ready(), _ANSWER_SECONDS)
        except (ServiceError, asyncio.TimeoutError) as error:
            self._answers = False
            reason = error.detail if isinstance(error, ServiceError) else f"no answer within {_ANSWER_SECONDS:g} s"
            raise EngineUnavailable(f"the {self._engine.kind} engine is not ready: {reason}") from error
        self._answers = answers
        if not answers:
            raise EngineUnavailable(f"the {self._engine.kind} engine's models do not all answer")

    def state(self) -> State:
        """What the service is, as far as is known without asking the engine."""
        if self._draining:
            return "draining"
        if self._reason is not None:
            return "starting"
        return "ready" if self._answers and self._engine.unavailable is None else "unready"

    async def _try_models(self, models: Models) -> None:
        names = list(await rehearse(self._pipeline, models))
        if self._reason is None:
            self.models = names

    async def _bring_up(self) -> None:
        started = time.perf_counter()
        while self._reason is not None:
            try:
                await self._engine.start()
                self.models = list(await rehearse(self._pipeline))
            except ServiceError as error:
                self._reason = error.detail
                logger.warning("not ready, trying again in %g s: %s", _RETRY_SECONDS, error.detail)
                await asyncio.sleep(_RETRY_SECONDS)
            except Exception as error:
                self._reason = f"the models could not be tried: {error!r}"
                logger.exception("not ready, trying again in %g s", _RETRY_SECONDS)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                # What is there now stays: the collector of cycles need not look at it again (50 ms each time).
                gc.collect()
                gc.freeze()
                self._reason = None
                self._answers = True
                logger.info("ready after %.2f s: %s", time.perf_counter() - started, ", ".join(self.models))


async def rehearse(pipeline: PosePipeline, models: Models | None = None) -> dict[str, Stages]:
    """Send a rendered picture through every pose model, as a detector sees it and with a given box.

    Args:
        pipeline: over an engine that has been started.
        models: to try; those that the engine serves now when None.

    Returns:
        where the time went, by the name of each pose model that answered.

    Raises:
        ServiceError: what a request would have got.
    """
    names = await pipeline.presets.names(models)
    if not names:
        where = f"{pipeline.engine.kind} engine ({pipeline.engine.place})" if pipeline.engine.place else "engine"
        raise EngineUnavailable(f"the {where} has no pose model (kind=pose) loaded")
    data, box = await asyncio.to_thread(_rehearsal_picture)
    # The box makes sure that the pose model runs, even when a detector finds nobody in the picture.
    pictures = [Picture(data, 1), Picture(data, 2, box)]
    took: dict[str, Stages] = {}
    for name in names:
        took[name] = Stages()
        answer = await pipeline.run(pictures, PoseOptions(model=name, flip=False), took[name], models=models)
        if answer.pose.flip_model:
            await pipeline.run(pictures[1:], PoseOptions(model=name, flip=True), models=models)
    return took


def _rehearsal_picture() -> tuple[bytes, npt.NDArray[np.float64]]:
    """A JPEG of one rendered person, and the person's box [1, 4]."""
    scene = render_scene(seed=1, size=(320, 240), people=1, occluders=0, whole=True)
    coded, jpeg = cv2.imencode(".jpg", scene.image[:, :, ::-1])
    if not coded:
        raise RuntimeError("OpenCV cannot encode a JPEG")
    return jpeg.tobytes(), scene.people[0].box[None]
