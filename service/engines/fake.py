"""An engine for tests: models are Python functions on arrays, and it can be told to be slow, fail or go away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from service.engines.base import Array, Engine, ModelMetadata, Tensors
from service.engines.tensors import check_inputs, empty_outputs, fits
from service.errors import DeadlineExceeded, EngineUnavailable, ModelNotFound

Function = Callable[[Tensors], Mapping[str, Array]]


@dataclass(frozen=True)
class FakeModel:
    """A model's config, and what it computes: a function of all inputs [N, ...] that gives all outputs [N, ...]."""

    metadata: ModelMetadata
    function: Function


@dataclass(frozen=True)
class Recorded:
    """One call that reached the engine, with copies of its inputs."""

    model: str
    inputs: Mapping[str, Array]
    timeout: float | None


class FakeEngine(Engine):
    """Keeps the contract of :class:`Engine` (names, shapes, N = 0, deadlines, errors) without any network.

    Attributes that tests may set at any time:
        available: False makes everything raise EngineUnavailable and ``ready`` False.
        delay: seconds each call takes.
        failures: by model name, the exception its calls raise.
        calls: what arrived, in order.
    """

    kind = "fake"

    def __init__(self, models: Mapping[str, FakeModel]) -> None:
        self._models = dict(models)
        self.available = True
        self.started = False
        self.closed = False
        self.delay = 0.0
        self.failures: dict[str, Exception] = {}
        self.calls: list[Recorded] = []

    async def start(self) -> None:
        """Raises EngineUnavailable when told to be unavailable."""
        if not self.available:
            raise EngineUnavailable("the fake engine is told to be unavailable")
        self.started = True

    async def infer(self, model: str, inputs: Tensors, *, timeout: float | None = None) -> dict[str, Array]:
        """Check, record, wait ``delay``, then fail as told or compute."""
        fake = self._model(model)
        rows = check_inputs(fake.metadata, inputs)
        self.calls.append(Recorded(model, {name: array.copy() for name, array in inputs.items()}, timeout))
        if timeout is not None and timeout <= self.delay:
            await asyncio.sleep(max(0.0, timeout))
            raise DeadlineExceeded(f"model {model!r} did not answer in time")
        if self.delay:
            await asyncio.sleep(self.delay)
        self._model(model)  # it may have gone away meanwhile
        if model in self.failures:
            raise self.failures[model]
        if rows == 0:
            return empty_outputs(fake.metadata)
        return self._checked(fake, fake.function(inputs), rows)

    async def models(self) -> list[str]:
        """Names, sorted."""
        return sorted(self._models)

    async def metadata(self, model: str) -> ModelMetadata:
        """Raises ModelNotFound, EngineUnavailable."""
        return self._model(model).metadata

    async def ready(self) -> bool:
        """True after ``start``, until closed or told to be unavailable."""
        return self.started and self.available and not self.closed

    async def close(self) -> None:
        """From now on everything raises EngineUnavailable."""
        self.closed = True

    def _model(self, name: str) -> FakeModel:
        if not self.available or not self.started or self.closed:
            raise EngineUnavailable("the fake engine is not available")
        if name not in self._models:
            raise ModelNotFound(f"model {name!r} is not loaded; there are {sorted(self._models)}")
        return self._models[name]

    @staticmethod
    def _checked(fake: FakeModel, outputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
        """A scripted model that breaks its own config would make a test prove nothing."""
        checked = {}
        for spec in fake.metadata.outputs:
            array = np.asarray(outputs[spec.name])
            wanted = (rows, *spec.shape) if fake.metadata.max_batch_size else spec.shape
            if array.dtype != spec.dtype or not fits(array.shape, wanted):
                raise AssertionError(
                    f"fake model {fake.metadata.name!r} gave {spec.name!r} as {array.dtype} {list(array.shape)}, "
                    f"its config says {spec.dtype} {list(wanted)}"
                )
            checked[spec.name] = array
        return checked
