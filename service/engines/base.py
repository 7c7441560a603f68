"""The one seam between the pipeline and whatever runs the networks.

The pipeline knows only this interface; it cannot tell ONNX Runtime in the process from a Triton server.
An engine knows tensors by name and nothing of images, people or HTTP.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

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


class Engine(ABC):
    """Runs models by name, batch first. Implementations are safe to call from many tasks of one event loop."""

    #: Shown in ``info`` and the metrics: ``embedded``, ``triton``, ``fake``.
    kind: str

    @abstractmethod
    async def start(self) -> None:
        """Load or connect. Raises EngineUnavailable with the reason when it cannot."""

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

    @abstractmethod
    async def models(self) -> list[str]:
        """Names of the loaded models and ensembles, sorted."""

    @abstractmethod
    async def metadata(self, model: str) -> ModelMetadata:
        """The model's config. Raises ModelNotFound."""

    @abstractmethod
    async def ready(self) -> bool:
        """True when every loaded model answers."""

    @abstractmethod
    async def close(self) -> None:
        """Finish what runs, free the rest. May be called twice."""
