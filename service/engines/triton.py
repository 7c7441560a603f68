"""The engine that sends everything to a Triton inference server, over gRPC.

It keeps the contract of :class:`Engine`, whatever the server does: deadlines are the caller's, a server that is gone
is told within a second, and nothing is computed twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from tritonclient.utils import InferenceServerException

from service.engines.base import Array, Engine, ModelMetadata, Models, Tensors
from service.engines.statistics import TransportStatistics
from service.engines.tensors import check_inputs, empty_outputs, join_rows, split_rows
from service.engines.triton_catalogue import Catalogue
from service.engines.triton_errors import never_sent, region_unknown, translate
from service.engines.triton_memory import Region, SharedRegions
from service.engines.triton_server import TritonServer
from service.engines.triton_tensors import large_inputs, read_outputs, write_inputs
from service.errors import (
    DeadlineExceeded,
    EngineUnavailable,
    InferenceFailed,
    ModelNotFound,
    Overloaded,
    ServiceError,
)
from service.tracing import outgoing

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# A request that found no connection is sent again for this long: a server behind a name may have moved.
_RETRY_SECONDS = 0.25
_RETRY_PAUSE = 0.05
_CALL_SECONDS = 1.5
_NOTHING: Tensors = {}


@dataclass(frozen=True)
class TritonSettings:
    """How the server is used.

    Attributes:
        concurrency: most requests at the server at a time; others wait here, where their deadline is watched and
            their tensors are not yet copied.
        shared_memory: ``auto`` uses it when the address is this machine's own and the server takes it, ``on`` also
            for other addresses (containers that share /dev/shm), ``off`` never.
        drain_seconds: how long ``close`` waits for requests in flight.
    """

    concurrency: int = 32
    shared_memory: Literal["auto", "on", "off"] = "auto"
    drain_seconds: float = 30.0


class TritonEngine(Engine):
    """A Triton server as an engine. One channel for each engine, made by ``start``."""

    kind = "triton"
    has_gaps = True

    def __init__(self, url: str, settings: TritonSettings | None = None) -> None:
        """``url`` is host:port of the gRPC port; nothing is sent before ``start``."""
        self.settings = settings or TritonSettings()
        self.transport = TransportStatistics()
        self.place = url
        self._regions = SharedRegions(_CALL_SECONDS)
        self._server = TritonServer(url, self._regions.server_restarted, self._server_polled, self._give_up)
        self._turns = asyncio.Semaphore(self.settings.concurrency)
        self._started = False
        self._closed = False
        self._cut = False
        self._in_flight = 0
        self._calls: set[asyncio.Task[Any]] = set()
        self._idle = asyncio.Event()

    @property
    def unavailable(self) -> str | None:  # type: ignore[override]
        """Why the server cannot be asked, by the last poll; None while it answers."""
        return self._server.gone

    @property
    def refused(self) -> str | None:  # type: ignore[override]
        """Versions that the server could not load while others of the same models answer."""
        refused = self._server.catalogue.refused
        return "; ".join(f"{name}: {why}" for name, why in sorted(refused.items())) or None

    async def start(self) -> None:
        """Connect and read what is loaded. Raises EngineUnavailable with the reason and the address."""
        if self._closed:
            raise EngineUnavailable("the engine is closed")
        if self._started:
            return
        await self._server.connect()
        wanted = self.settings.shared_memory
        share = wanted == "on" or (wanted == "auto" and self._server.local)
        if share and not await self._regions.open(self._server.client):
            level = logging.WARNING if wanted == "on" else logging.INFO
            logger.log(level, "no shared memory with %s: %s", self._server.name, self._regions.refusal)
        self.transport.shared_memory = self._regions.enabled
        self._started = True
        logger.info(
            "%s has %d models; shared memory: %s",
            self._server.name,
            len(self._server.catalogue.models),
            "yes" if self._regions.enabled else "no",
        )

    async def infer(self, model: str, inputs: Tensors, *, timeout: float | None = None) -> dict[str, Array]:
        """Run one request on the latest version; see :meth:`Models.infer`."""
        return await self.run(self._metadata(model), "", inputs, timeout)

    async def run(
        self, metadata: ModelMetadata, version: str, inputs: Tensors, timeout: float | None
    ) -> dict[str, Array]:
        """Run one request on a version as the server names it, empty for its latest."""
        model = metadata.name
        rows = check_inputs(metadata, inputs)
        if rows == 0:
            return empty_outputs(metadata)
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        limit = metadata.max_batch_size
        parts = split_rows(inputs, rows, limit) if 0 < limit < rows else [dict(inputs)]
        self._in_flight += 1
        outcome = "cancelled"
        try:
            answers = await _all_or_none([self._part(metadata, version, part, deadline) for part in parts])
            outcome = "ok"
            return join_rows(answers)
        except ServiceError as error:
            outcome = error.type
            raise
        finally:
            self.transport.calls[model, outcome] += 1
            self._in_flight -= 1
            if self._in_flight == 0:
                self._idle.set()

    def hold(self) -> AbstractContextManager[Models]:
        """The models as they are known now: what has been replaced since is ModelNotFound, and asked for again."""
        return nullcontext(_Held(self, self._server.catalogue))

    async def models(self) -> list[str]:
        """Names of the loaded models, sorted. Raises EngineUnavailable."""
        self._require()
        return sorted(self._server.catalogue.models)

    async def metadata(self, model: str) -> ModelMetadata:
        """The model's config. Raises ModelNotFound, EngineUnavailable."""
        return self._metadata(model)

    async def ready(self) -> bool:
        """True when every loaded model answers. Raises EngineUnavailable with the reason when one does not."""
        if self._closed or not self._started:
            return False
        self._require()
        absent = await self._server.not_ready()
        if absent:
            raise EngineUnavailable(f"{self._server.name}: not ready: {', '.join(absent)}")
        return True

    async def close(self) -> None:
        """Refuse new requests, finish those in flight within ``drain_seconds``, let go of the server."""
        first, self._closed = not self._closed, True
        if not first:
            return
        if self._in_flight:
            self._idle.clear()
            try:
                await asyncio.wait_for(self._idle.wait(), self.settings.drain_seconds)
            except asyncio.TimeoutError:  # before Python 3.11 not the built-in one
                logger.warning("closing with %d requests unfinished", self._in_flight)
        self._cut = True
        await self._regions.close(self._server.client)
        await self._server.close()

    def versions(self) -> dict[str, int]:
        """The version of each model that answers, as far as known."""
        return {name: max(one.versions, default=1) for name, one in self._server.catalogue.models.items()}

    def _require(self) -> None:
        if self._closed:
            raise EngineUnavailable("the engine is closed")
        if not self._started or self._server.gone is not None:
            raise EngineUnavailable(self._server.gone or "the engine is not started")

    def _metadata(self, model: str) -> ModelMetadata:
        return self.find(model, self._server.catalogue)

    def find(self, model: str, catalogue: Catalogue) -> ModelMetadata:
        """A model of a catalogue. Raises ModelNotFound, EngineUnavailable."""
        self._require()
        if model not in catalogue.models:
            why = catalogue.troubles.get(model)
            raise ModelNotFound(
                f"model {model!r} is not loaded by {self._server.name}{f' ({why})' if why else ''}; "
                f"there are {sorted(catalogue.models)}"
            )
        return catalogue.models[model]

    async def _part(
        self, metadata: ModelMetadata, version: str, inputs: Tensors, deadline: float | None
    ) -> dict[str, Array]:
        """At most ``max_batch_size`` rows."""
        async with self._turn(metadata.name, deadline):
            large = large_inputs(inputs)
            region = await self._regions.borrow(self._server.client, Region.needed(large)) if large else None
            if region is None:
                result = await self._send(metadata.name, version, self._requested(metadata, inputs), deadline)
                return read_outputs(metadata, inputs, result)
            answered = False
            try:
                tensors = self._requested(metadata, inputs, large, region)
                result = await self._send(metadata.name, version, tensors, deadline)
                answered = True
            except (Overloaded, InferenceFailed, ModelNotFound):
                answered = True
                raise
            except _RegionUnknown:
                answered = True
                self._regions.server_restarted()
                result = await self._send(metadata.name, version, self._requested(metadata, inputs), deadline)
            finally:
                self._regions.give_back(region, answered=answered)
            return read_outputs(metadata, inputs, result)

    async def _send(self, model: str, version: str, tensors: Sequence[Any], deadline: float | None) -> Any:
        """One call. Only what found no connection is sent again, for a quarter of a second or until that is no news."""
        clock, sent = asyncio.get_running_loop().time, time.monotonic()
        patience = clock() + _RETRY_SECONDS
        while True:
            if self._cut:
                raise EngineUnavailable("the engine is closed")
            if self._server.silent:  # it may take the connection all the same, and would keep the call
                raise EngineUnavailable(self._server.gone or f"{self._server.name} does not answer")
            left = None if deadline is None else deadline - clock()
            if left is not None and left <= 0:
                raise DeadlineExceeded(f"model {model!r} did not answer in time")
            try:
                microseconds = None if left is None else max(1, int(left * 1e6))
                call = self._server.client.infer(
                    model,
                    tensors,
                    model_version=version,
                    timeout=microseconds,
                    client_timeout=left,
                    headers=outgoing.get(),
                )
                return await self._while_server_lives(call)
            except asyncio.CancelledError:
                if self._cut:  # not the caller went away, but the channel
                    raise EngineUnavailable("the engine is closed") from None
                raise
            except InferenceServerException as error:
                if region_unknown(error):
                    raise _RegionUnknown from error
                again = clock() + _RETRY_PAUSE
                failure = translate(error, model, self._server.name)
                if isinstance(failure, (InferenceFailed, ModelNotFound)):
                    await self._server.read_since(sent)  # the pipeline asks next whether the model is another one now
                elif isinstance(failure, EngineUnavailable):
                    self._server.look()
                last = patience if deadline is None else min(patience, deadline)
                if not never_sent(error) or again > last or self._server.gone is not None:
                    raise failure from error
            self.transport.retries += 1
            await asyncio.sleep(_RETRY_PAUSE)

    async def _while_server_lives(self, call: Coroutine[Any, Any, Result]) -> Result:
        """The result of a call, which a server that stands still must keep neither for its deadline nor for ever."""
        task = asyncio.ensure_future(call)
        self._calls.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if task not in self._calls:
                raise EngineUnavailable(self._server.gone or f"{self._server.name} does not answer") from None
            raise
        finally:
            self._calls.discard(task)

    def _give_up(self) -> None:
        """End every call: the server answers nothing any more."""
        calls, self._calls = self._calls, set()
        for task in calls:
            task.cancel()

    @asynccontextmanager
    async def _turn(self, model: str, deadline: float | None) -> AsyncIterator[None]:
        if deadline is None or not self._turns.locked():
            await self._turns.acquire()
        else:
            try:
                await asyncio.wait_for(self._turns.acquire(), max(0.0, deadline - asyncio.get_running_loop().time()))
            except asyncio.TimeoutError:
                raise DeadlineExceeded(f"model {model!r}: too many requests are at {self._server.name}") from None
        try:
            yield
        finally:
            self._turns.release()

    def _requested(
        self, metadata: ModelMetadata, inputs: Tensors, shared: Tensors = _NOTHING, region: Region | None = None
    ) -> list[Any]:
        for name, array in inputs.items():
            self.transport.sent_bytes["shared_memory" if name in shared else "grpc"] += array.nbytes
        return write_inputs(metadata, inputs, shared, region)

    async def _server_polled(self) -> None:
        await self._regions.polled(self._server.client)
        self.transport.shared_memory = self._regions.enabled


class _Held(Models):
    """The models of one catalogue, each at the version that answered then.

    Ensembles are served in one version only (see export/configs.py), whose number changes together with its preset.
    """

    def __init__(self, engine: TritonEngine, catalogue: Catalogue) -> None:
        self._engine, self._catalogue = engine, catalogue

    async def infer(self, model: str, inputs: Tensors, *, timeout: float | None = None) -> dict[str, Array]:
        metadata = self._engine.find(model, self._catalogue)
        return await self._engine.run(metadata, str(max(metadata.versions)), inputs, timeout)

    async def models(self) -> list[str]:
        return sorted(self._catalogue.models)

    async def metadata(self, model: str) -> ModelMetadata:
        return self._engine.find(model, self._catalogue)


class _RegionUnknown(Exception):
    """The server does not know a region that was registered."""


async def _all_or_none(work: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """All results in order, or the first failure after the others were cancelled."""
    if len(work) == 1:
        return [await work[0]]
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
