"""The one seam between the pipeline and whatever runs the networks.

The pipeline knows only this interface; it cannot tell ONNX Runtime in the process from a Triton server.
An engine knows tensors by name and nothing of images, people or HTTP.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Tensors = Mapping[str, Array]


@dataclass(frozen=True)
class TensorSpec:
    """A model's input or output: NumPy dtype name and shape *without* the batch axis, -1 where it varies."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelMetadata:
    """What a model's config says. ``parameters`` carry skeleton, input size, radii and thresholds as text."""

    name: str
    versions: tuple[int, ...]
    platform: str
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: Mapping[str, str] = field(default_factory=dict)


Result = TypeVar("Result")
# Asks a model by name; awaited by the coroutines that :meth:`Models.follow` runs.
Ask = Callable[[str, Tensors], Awaitable[dict[str, Array]]]


class Models(ABC):
    """Models that can be asked: those of an engine as they come and go, or one state of them that stays."""

    #: Whether :meth:`follow` is there, and the better way for a coroutine of short work between networks.
    follows: bool = False

    @abstractmethod
    async def infer(self, model: str, inputs: Tensors, *, timeout: float | None = None) -> dict[str, Array]:
        """Run one request.

        Args:
            model: name of a loaded model or ensemble.
            inputs: every input by name, [N, ...] with one N for all; N may exceed the model's
                ``max_batch_size`` (the engine splits) and may be 0 (empty outputs come back). A model whose
                ``max_batch_size`` is 0 has no batch axis: its tensors have exactly the config's shape.
                The arrays must not change until the call returns.
            timeout: seconds this call may take; None for no limit.

        Returns:
            every output by name, [N, ...]. Arrays may be views of a larger batch's result.

        Raises:
            ModelNotFound, EngineUnavailable, Overloaded (the model's bounded queue is full), DeadlineExceeded,
            InferenceFailed; ValueError for tensors that do not fit the model's inputs (a caller's bug, named
            with shape and dtype).
        """

    async def follow(
        self, work: Callable[[Ask], Coroutine[Any, Any, Result]], model: str, *, timeout: float | None = None
    ) -> Result:
        """Run a coroutine in the threads that run the networks, from its beginning to its end.

        Between two networks it then needs neither the event loop nor another thread, which have to wake up, and find
        nothing of theirs in the caches.

        Args:
            work: makes the coroutine. It may await what it is given, and nothing else; its own work should be short
                (milliseconds), for a network waits for its thread.
            model: named when the time is up before the first model was asked.
            timeout: seconds that all of it may take; None for no limit. Afterwards, or when the caller is cancelled,
                it is closed at what it awaits, or never begun.

        Raises:
            What the coroutine raises, and what :meth:`infer` raises.
        """
        raise NotImplementedError(f"{type(self).__name__} has no threads to follow in")

    @abstractmethod
    async def models(self) -> list[str]:
        """Names of the loaded models and ensembles, sorted."""

    @abstractmethod
    async def metadata(self, model: str) -> ModelMetadata:
        """The model's config. Raises ModelNotFound."""


# Tries models that are to replace others; raises ServiceError for those that must not.
Trial = Callable[[Models], Awaitable[None]]


class Engine(Models):
    """Runs models by name, batch first. Implementations are safe to call from many tasks of one event loop."""

    #: Shown in ``info`` and the metrics: ``embedded``, ``triton``, ``fake``.
    kind: str
    #: Where its models are, for messages: a folder, or a server's address.
    place: str = ""
    #: Why no model can be asked now, where that is known without asking; None where models can be.
    unavailable: str | None = None
    #: Why what lies in the model repository now is not what is served; None where it is, or nobody knows.
    refused: str | None = None
    #: Whether a model may be gone for the seconds in which it is replaced by one of other tensors (Triton's way).
    has_gaps: bool = False
    #: What new models have to pass before they replace the old ones, in engines that replace models themselves.
    trial: Trial | None = None

    @abstractmethod
    async def start(self) -> None:
        """Load or connect. Raises EngineUnavailable with the reason when it cannot."""

    def hold(self) -> AbstractContextManager[Models]:
        """The models as they are now, for one request: its preset and its network are of one version.

        Engines that replace models while they run override this; whoever holds models gets their answers until the
        block ends.
        """
        return nullcontext(self)

    @abstractmethod
    async def ready(self) -> bool:
        """True when every loaded model answers. Raises EngineUnavailable where the reason is known."""

    @abstractmethod
    async def close(self) -> None:
        """Finish what runs, free the rest. May be called twice."""
