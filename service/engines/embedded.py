"""The engine that runs the model repository inside the process, on ONNX Runtime.

It reads the same ``config.pbtxt`` as Triton: ``max_batch_size``, ``dynamic_batching``, ``version_policy``,
``instance_group``, ``model_warmup`` and ``ensemble_scheduling`` mean the same, so a repository behaves alike under
both engines. Of the versions that a policy selects the latest answers; an older one is loaded only where an
ensemble's step names it.

New versions and configs are noticed while it runs, loaded and warmed beside the old ones, tried, and put in place all
at once; see :meth:`EmbeddedEngine.update`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from service.engines.base import Array, Engine, ModelMetadata, Models, Tensors
from service.engines.batching import BatchScheduler
from service.engines.calls import Loaded, Network
from service.engines.config import RepositoryError
from service.engines.fingerprint import Fingerprint, fingerprint
from service.engines.generations import Generation, Traffic, load
from service.engines.sessions import OnnxModel, RuntimeSettings
from service.engines.statistics import ModelStatistics
from service.errors import DeadlineExceeded, EngineUnavailable, Overloaded, ServiceError

logger = logging.getLogger(__name__)


class EmbeddedEngine(Engine):
    """ONNX Runtime in the process.

    Attributes:
        updates: how many changes of the repository were ``taken`` over and ``refused`` since the start.
    """

    kind = "embedded"

    def __init__(self, repository: Path | str, settings: RuntimeSettings | None = None) -> None:
        """``repository`` is a folder in Triton's layout; nothing is read before ``start``."""
        self.repository = Path(repository)
        self.settings = settings or RuntimeSettings()
        self.updates: Counter[str] = Counter(taken=0, refused=0)
        self._current: Generation | None = None
        self._living: list[Generation] = []
        self._scheduler: BatchScheduler | None = None
        self._traffic = Traffic()
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load every model. Raises EngineUnavailable with file and value when the repository cannot be served."""
        if self._traffic.closed:
            raise EngineUnavailable("the engine is closed")
        if self._scheduler is not None:
            return
        started = time.monotonic()
        seen = await asyncio.to_thread(fingerprint, self.repository)
        try:
            configs, networks = await asyncio.to_thread(load, self.repository, self.settings, {})
        except (RepositoryError, OSError) as error:
            raise EngineUnavailable(str(error)) from error
        self._scheduler = BatchScheduler(self.settings.concurrent_runs)
        self._queue(networks)
        self._current = Generation(Loaded(configs, networks, self._scheduler), self._traffic)
        self._living = [self._current]
        logger.info("loaded %d models in %.2f s from %s", len(configs), time.monotonic() - started, self.repository)
        if self.settings.reload_seconds:
            self._watcher = asyncio.get_running_loop().create_task(self._watch(seen))

    async def infer(self, model: str, inputs: Tensors, *, timeout: float | None = None) -> dict[str, Array]:
        """Run one request; see :meth:`Models.infer`. Also raises Overloaded when the model's queue is full."""
        with self.hold() as models:
            return await models.infer(model, inputs, timeout=timeout)

    async def models(self) -> list[str]:
        """Names of the loaded models and ensembles, sorted."""
        return sorted(self._current.configs) if self._current is not None else []

    async def metadata(self, model: str) -> ModelMetadata:
        """The model's config. Raises ModelNotFound; EngineUnavailable before ``start``."""
        return self._served().config(model).metadata

    def hold(self) -> AbstractContextManager[Models]:
        """The models as they are now; those that are replaced meanwhile are freed when their last holder lets go."""
        return _Hold(self._served(), self._free_replaced)

    async def ready(self) -> bool:
        """True between ``start`` and ``close`` while all workers live."""
        return not self._traffic.closed and self._scheduler is not None and self._scheduler.alive

    async def close(self) -> None:
        """Refuse new requests, finish those in flight within ``drain_seconds``, free the sessions."""
        first, self._traffic.closed = not self._traffic.closed, True
        scheduler = self._scheduler
        if scheduler is None or not first:
            return
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        end = time.monotonic() + self.settings.drain_seconds
        if not await self._traffic.end(self.settings.drain_seconds):
            logger.warning("closing with %d requests unfinished", self._traffic.running)
        await asyncio.to_thread(scheduler.stop, max(0.0, end - time.monotonic()))
        self._current, self._scheduler, self._living = None, None, []

    async def update(self) -> bool:
        """Take over what lies in the repository now, when it can be served; the old models answer until then.

        The new networks are loaded and warmed up in a thread, and have to pass ``trial``. Requests that have begun
        finish on the old ones. A repository that cannot be served is refused as a whole: ``refused`` and the log say
        why, and everything stays as it is.

        Returns:
            True when the repository was taken over or refused, False when it could not be tried for lack of room
            (a full queue) and should be tried again.
        """
        old, scheduler = self._served(), self._scheduler
        assert scheduler is not None, "something is served"
        started = time.monotonic()
        queued: list[Network] = []
        try:
            configs, networks = await asyncio.to_thread(load, self.repository, self.settings, dict(old.networks))
            if configs == old.configs and networks == old.networks:
                if self.refused:
                    logger.info("%s is again what is served", self.repository)
                self.refused = None
                return True
            queued = self._queue(networks, old.networks)
            candidate = Generation(Loaded(configs, networks, scheduler), self._traffic)
            if self.trial is not None:
                await self.trial(candidate)
        except (Overloaded, DeadlineExceeded) as error:
            logger.warning("%s: new models wait for a calmer moment to be tried: %s", self.repository, error)
            self._unqueue(queued)
            return False
        except Exception as error:  # whatever is wrong with new models is no reason to stop serving the old ones
            self._unqueue(queued)
            self._refuse(error)
            return True
        except BaseException:  # closing
            self._unqueue(queued)
            raise
        self._current = candidate
        self._living.append(candidate)
        self.refused = None
        self.updates["taken"] += 1
        self._free_replaced()
        logger.info("updated %s in %.2f s: %s", self.repository, time.monotonic() - started, _changes(old, candidate))
        return True

    @property
    def providers(self) -> dict[str, tuple[str, ...]]:
        """The execution providers each network really runs on."""
        return {name: network.providers for name, network in self.networks.items()}

    @property
    def networks(self) -> dict[str, OnnxModel]:
        """The latest version of each network."""
        if self._current is None:
            return {}
        return {name: network.model for (name, _), network in sorted(self._current.networks.items())}

    def versions(self) -> dict[str, int]:
        """The version of each model that answers."""
        return {name: config.version for name, config in self._current.configs.items()} if self._current else {}

    def statistics(self) -> dict[str, ModelStatistics]:
        """Counters of every network; ensembles are counted in their parts."""
        return self._scheduler.statistics() if self._scheduler is not None else {}

    async def _watch(self, handled: Fingerprint) -> None:
        """Update whenever the repository has changed and then stayed the same for one period: files are whole then."""
        changing: Fingerprint | None = None
        while True:
            await asyncio.sleep(self.settings.reload_seconds)
            now = await asyncio.to_thread(fingerprint, self.repository)
            if now != handled and now == changing and await self.update():
                handled = now
            changing = now

    def _refuse(self, error: Exception) -> None:
        message = error.detail if isinstance(error, ServiceError) else str(error) or repr(error)
        known = isinstance(error, (RepositoryError, ServiceError, OSError))
        self.refused = message
        self.updates["refused"] += 1
        logger.error("the models in %s are refused, the old ones go on: %s", self.repository, message,
                     exc_info=None if known else error)  # fmt: skip

    def _queue(
        self,
        networks: Mapping[tuple[str, int], Network],
        known: Mapping[tuple[str, int], Network] | None = None,
    ) -> list[Network]:
        """Give each network that is not known a queue; returns those."""
        assert self._scheduler is not None, "started"
        had = {network.key for network in (known or {}).values()}
        added = [(name, network) for (name, _), network in networks.items() if network.key not in had]
        for name, network in added:
            self._scheduler.add(name, network.model.run, network.model.batching, network.key)
        return [network for _, network in added]

    def _unqueue(self, networks: list[Network]) -> None:
        if self._scheduler is not None:
            for network in networks:
                self._scheduler.remove(network.key)

    def _free_replaced(self) -> None:
        """Let go of generations that nobody holds, and of the networks that only they had."""
        gone = [one for one in self._living if one is not self._current and not one.holders]
        if not gone or self._scheduler is None:
            return
        self._living = [one for one in self._living if one not in gone]
        kept = {network.key for one in self._living for network in one.networks.values()}
        freed = {network.key: network for one in gone for network in one.networks.values() if network.key not in kept}
        self._unqueue(list(freed.values()))

    def _served(self) -> Generation:
        if self._current is None:
            raise EngineUnavailable("the engine is closed" if self._traffic.closed else "the engine is not started")
        return self._current


class _Hold:
    """A block in which a generation answers. A class: see :class:`service.stages.Measured`."""

    __slots__ = ("_generation", "_let_go")

    def __init__(self, generation: Generation, let_go: Callable[[], None]) -> None:
        self._generation = generation
        self._let_go = let_go

    def __enter__(self) -> Models:
        self._generation.holders += 1
        return self._generation

    def __exit__(self, *error: object) -> None:
        self._generation.holders -= 1
        self._let_go()


def _changes(old: Generation, new: Generation) -> str:
    """``pose_heads 1 -> 2``, and whatever came and went; configs alone are named too."""
    changes = []
    for name in sorted({*old.configs, *new.configs}):
        before, after = old.configs.get(name), new.configs.get(name)
        if before is None or after is None:
            changes.append(f"{name} {'came' if before is None else 'went'}")
        elif before.version != after.version:
            changes.append(f"{name} {before.version} -> {after.version}")
        elif before != after:
            changes.append(f"{name} (config)")
    return ", ".join(changes) or "files alone"
