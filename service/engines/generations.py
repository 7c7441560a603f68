"""One state of the model repository, loaded: it answers as long as somebody holds it, whatever is put there later."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from service.engines.base import Array, Ask, ModelMetadata, Models, Result, Tensors
from service.engines.calls import EngineCall, Loaded, Network
from service.engines.config import ModelConfig, RepositoryError, read_repository
from service.engines.ensembles import check_ensembles
from service.engines.journeys import Journey
from service.engines.queues import Caller
from service.engines.sessions import OnnxModel, RuntimeSettings
from service.engines.tensors import check_inputs, empty_outputs
from service.errors import EngineUnavailable

_serial = itertools.count(1)


class Traffic:
    """Requests in flight over all generations, and whether new ones are still taken.

    ``with traffic:`` counts the block as a request. Raises EngineUnavailable once closed.
    """

    def __init__(self) -> None:
        self.closed = False
        self.running = 0
        self._idle: asyncio.Event | None = None

    def __enter__(self) -> None:
        """A request begins."""
        if self.closed:
            raise EngineUnavailable("the engine is closing")
        self.running += 1

    def __exit__(self, *error: object) -> None:
        """It has ended."""
        self.running -= 1
        if self._idle is not None and self.running == 0:
            self._idle.set()

    async def end(self, seconds: float) -> bool:
        """Wait for those that run; False when some are still there after that time."""
        if self.running:
            self._idle = asyncio.Event()
            try:
                await asyncio.wait_for(self._idle.wait(), seconds)
            except asyncio.TimeoutError:  # before Python 3.11 not the built-in one
                return False
        return True


class Generation(Models):
    """The models of one state of the repository.

    Attributes:
        configs: as in :class:`Loaded`.
        networks: as in :class:`Loaded`.
        holders: requests that were begun with this generation and are not finished.
    """

    def __init__(self, loaded: Loaded, traffic: Traffic) -> None:
        self.configs = loaded.configs
        self.networks = loaded.networks
        self.holders = 0
        # Else a GPU, or other threads of the run, would have nothing to do while this one decodes a picture.
        self.follows = all(network.model.one_core for network in loaded.networks.values())
        self._loaded = loaded
        self._traffic = traffic

    async def infer(self, model: str, inputs: Tensors, *, timeout: float | None = None) -> dict[str, Array]:
        """Run one request; see :meth:`Models.infer`."""
        config = self.config(model)
        with self._traffic:
            rows = check_inputs(config.metadata, inputs)
            if rows == 0:
                return empty_outputs(config.metadata)
            deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
            caller = Caller(self._loaded.scheduler)
            EngineCall(self._loaded, caller).begin(config, -1, inputs, caller.finish)
            return await caller.answer(model, deadline)

    async def follow(
        self, work: Callable[[Ask], Coroutine[Any, Any, Result]], model: str, *, timeout: float | None = None
    ) -> Result:
        """Run a coroutine in the worker threads; see :meth:`Models.follow`."""
        with self._traffic:
            deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
            caller = Caller(self._loaded.scheduler)
            self._loaded.scheduler.call(caller, Journey(self._loaded, caller, work).begin)
            answer: Result = await caller.answer(model, deadline)
            return answer

    async def models(self) -> list[str]:
        """Names, sorted."""
        return sorted(self.configs)

    async def metadata(self, model: str) -> ModelMetadata:
        """The model's config. Raises ModelNotFound."""
        return self.config(model).metadata

    def config(self, model: str) -> ModelConfig:
        """The model's config. Raises ModelNotFound."""
        return self._loaded.config(model)


def load(
    repository: Path, settings: RuntimeSettings, known: Mapping[tuple[str, int], Network]
) -> tuple[dict[str, ModelConfig], dict[tuple[str, int], Network]]:
    """Read a repository, check it, and load and warm up its networks; blocks.

    Args:
        repository: in Triton's layout.
        settings: for the sessions.
        known: networks that are taken over where nothing about them has changed.

    Raises:
        RepositoryError, OSError: it cannot be served.
    """
    configs = read_repository(repository)
    check_ensembles(configs)
    networks: dict[tuple[str, int], Network] = {}
    for name, version in sorted(_wanted(configs)):
        config = configs[name].at_version(version)
        origin = _origin(config)
        if (old := known.get((name, version))) is not None and old.origin == origin:
            networks[name, version] = old
            continue
        model = OnnxModel(config, settings)
        if settings.warm_up:
            model.warm_up()
        if _origin(config) != origin:
            raise RepositoryError(f"{config.onnx} changed while it was read")
        networks[name, version] = Network(f"{name}/{version}#{next(_serial)}", model, origin)
    return configs, networks


def _wanted(configs: Mapping[str, ModelConfig]) -> set[tuple[str, int]]:
    """Networks to load: of every model the latest version, and those that ensembles name."""
    wanted = {(name, config.version) for name, config in configs.items() if config.onnx is not None}
    for config in configs.values():
        for step in config.steps:
            part = configs[step.model]
            if part.onnx is not None and step.version != -1:
                wanted.add((step.model, step.version))
    return wanted


def _origin(config: ModelConfig) -> object:
    assert config.onnx is not None, "only networks are loaded"
    found = os.stat(config.onnx)
    # That versions come and go beside it changes nothing about this one.
    alone = replace(config, metadata=replace(config.metadata, versions=(config.version,)))
    return alone, found.st_ino, found.st_size, found.st_mtime_ns
