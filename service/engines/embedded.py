"""The engine that runs the model repository inside the process, on ONNX Runtime.

It reads the same ``config.pbtxt`` as Triton: ``max_batch_size``, ``dynamic_batching``, ``version_policy``,
``instance_group`` and ``ensemble_scheduling`` mean the same, so a repository behaves alike under both engines.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from pathlib import Path

from service.engines.base import Array, Engine, ModelMetadata, Tensors
from service.engines.batching import BatchScheduler
from service.engines.config import ModelConfig, RepositoryError, read_repository
from service.engines.ensembles import check_ensembles, run_ensemble
from service.engines.sessions import OnnxModel, RuntimeSettings
from service.engines.statistics import ModelStatistics
from service.engines.tensors import check_inputs, empty_outputs, join_rows, split_rows
from service.errors import EngineUnavailable, InferenceFailed, ModelNotFound

logger = logging.getLogger(__name__)


class EmbeddedEngine(Engine):
    """ONNX Runtime in the process. The models are loaded by ``start`` and stay as they are until ``close``."""

    kind = "embedded"

    def __init__(self, repository: Path | str, settings: RuntimeSettings | None = None) -> None:
        """``repository`` is a folder in Triton's layout; nothing is read before ``start``."""
        self.repository = Path(repository)
        self.settings = settings or RuntimeSettings()
        self._configs: Mapping[str, ModelConfig] = {}
        self._networks: Mapping[str, OnnxModel] = {}
        self._scheduler: BatchScheduler | None = None
        self._closed = False
        self._in_flight = 0
        self._idle: asyncio.Event | None = None

    async def start(self) -> None:
        """Load every model. Raises EngineUnavailable with file and value when the repository cannot be served."""
        if self._closed:
            raise EngineUnavailable("the engine is closed")
        if self._scheduler is not None:
            return
        started = time.monotonic()
        try:
            self._configs, self._networks = await asyncio.to_thread(self._load)
        except (RepositoryError, OSError) as error:
            raise EngineUnavailable(str(error)) from error
        self._scheduler = BatchScheduler(self.settings.concurrent_runs)
        for name, network in self._networks.items():
            self._scheduler.add(name, network.run, network.batching)
        logger.info(
            "loaded %d models in %.2f s from %s", len(self._configs), time.monotonic() - started, self.repository
        )

    async def infer(self, model: str, inputs: Tensors, *, timeout: float | None = None) -> dict[str, Array]:
        """Run one request; see :meth:`Engine.infer`. Also raises Overloaded when the model's queue is full."""
        config = self._config(model)
        if self._closed:
            raise EngineUnavailable("the engine is closing")
        rows = check_inputs(config.metadata, inputs)
        if rows == 0:
            return empty_outputs(config.metadata)
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        self._in_flight += 1
        try:
            return await self._run(config, inputs, rows, deadline)
        finally:
            self._in_flight -= 1
            if self._idle is not None and self._in_flight == 0:
                self._idle.set()

    async def models(self) -> list[str]:
        """Names of the loaded models and ensembles, sorted."""
        return sorted(self._configs)

    async def metadata(self, model: str) -> ModelMetadata:
        """The model's config. Raises ModelNotFound; EngineUnavailable before ``start``."""
        return self._config(model).metadata

    async def ready(self) -> bool:
        """True between ``start`` and ``close`` while all workers live."""
        return not self._closed and self._scheduler is not None and self._scheduler.alive

    async def close(self) -> None:
        """Refuse new requests, finish those in flight within ``drain_seconds``, free the sessions."""
        first, self._closed = not self._closed, True
        scheduler = self._scheduler
        if scheduler is None or not first:
            return
        end = time.monotonic() + self.settings.drain_seconds
        if self._in_flight:
            self._idle = asyncio.Event()
            try:
                await asyncio.wait_for(self._idle.wait(), self.settings.drain_seconds)
            except asyncio.TimeoutError:  # before Python 3.11 not the built-in one
                logger.warning("closing with %d requests unfinished", self._in_flight)
        await asyncio.to_thread(scheduler.stop, max(0.0, end - time.monotonic()))
        self._networks = {}
        self._scheduler = None

    @property
    def providers(self) -> dict[str, tuple[str, ...]]:
        """The execution providers each network really runs on."""
        return {name: network.providers for name, network in self._networks.items()}

    def statistics(self) -> dict[str, ModelStatistics]:
        """Counters of every network; ensembles are counted in their parts."""
        return self._scheduler.statistics() if self._scheduler is not None else {}

    def _load(self) -> tuple[dict[str, ModelConfig], dict[str, OnnxModel]]:
        configs = read_repository(self.repository)
        check_ensembles(configs)
        networks = {name: OnnxModel(c, self.settings) for name, c in configs.items() if c.onnx is not None}
        if self.settings.warm_up:
            for network in networks.values():
                network.warm_up()
        return configs, networks

    def _config(self, model: str) -> ModelConfig:
        if self._scheduler is None:
            raise EngineUnavailable("the engine is closed" if self._closed else "the engine is not started")
        config = self._configs.get(model)
        if config is None:
            raise ModelNotFound(f"model {model!r} is not loaded; there are {sorted(self._configs)}")
        return config

    async def _run(self, config: ModelConfig, inputs: Tensors, rows: int, deadline: float | None) -> dict[str, Array]:
        network = self._networks.get(config.metadata.name)
        limit = config.metadata.max_batch_size if network is None else network.batching.max_rows
        # In the config's order, so that the batcher can compare shapes without looking at names.
        inputs = {spec.name: inputs[spec.name] for spec in config.metadata.inputs}
        parts = split_rows(inputs, rows, limit) if 0 < limit < rows else [inputs]
        if config.steps:
            # One part after the other: the maps between the steps of a large request must not pile up in memory.
            return join_rows([await self._run_steps(config, part, deadline) for part in parts])
        if self._scheduler is None:
            raise EngineUnavailable("the engine is closed")
        return join_rows(await self._scheduler.run(config.metadata.name, parts, deadline))

    async def _run_steps(self, config: ModelConfig, inputs: Tensors, deadline: float | None) -> dict[str, Array]:
        async def call(model: str, tensors: Tensors) -> dict[str, Array]:
            part = self._configs[model]
            try:
                rows = check_inputs(part.metadata, tensors)
            except ValueError as error:  # not the caller's tensors: an earlier step's output
                raise InferenceFailed(f"ensemble {config.metadata.name!r}: {error}") from error
            return await self._run(part, tensors, rows, deadline)

        return await run_ensemble(config, inputs, call)
