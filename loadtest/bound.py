"""The bound: the networks alone, on the very tensors that the pipeline makes of the same pictures.

A child process runs the service's own pipeline once for each picture and notes the tensors of every network call.
Rounds then run these calls through the raw ONNX Runtime sessions, those that the service takes under load, and nothing
else: no HTTP, no decoding, no crops, no suppression. As many threads run them as the engine runs networks at a time.
What the service reaches of that rate is the bench's ratio.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from loadtest.pace import Round, rate
from service.engine_choice import open_engine
from service.engines.base import Engine, ModelMetadata, Tensors
from service.engines.config import ModelConfig, read_repository
from service.engines.embedded import EmbeddedEngine
from service.engines.ensembles import DataFlow
from service.engines.sessions import OnnxModel
from service.engines.tensors import join_rows, split_rows
from service.options import PoseOptions
from service.pipeline import PosePipeline
from service.settings import Settings
from service.steps import Picture

Array = npt.NDArray[np.generic]
# One run of a network: its session, the outputs wanted, and its input tensors.
Call = tuple[Any, list[str], dict[str, Array]]


@dataclass(frozen=True)
class Recording:
    """What the pipeline did for the pictures.

    Attributes:
        people: people answered for each picture.
        calls: network runs for each picture.
        rows: crops posed for each picture.
    """

    people: list[int]
    calls: list[int]
    rows: list[int]


class Bound:
    """The child process. A context manager; :attr:`recording` is there once it is entered."""

    def __init__(self, pictures: Sequence[bytes], options: Mapping[str, str]) -> None:
        """``options`` are the request's, as text. The repository and threads are the environment's settings."""
        context = multiprocessing.get_context("spawn")
        self._connection, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, list(pictures), dict(options)), daemon=True)
        self.recording = Recording([], [], [])

    def __enter__(self) -> Bound:
        self._process.start()
        self.recording = self._receive()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.is_alive():
            self._connection.send(None)
            self._process.join(10)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()

    @property
    def pid(self) -> int:
        """Process id of the child."""
        assert self._process.pid is not None, "the bound was not started"
        return self._process.pid

    def run(self, seconds: float) -> tuple[float, int]:
        """Run the calls of all pictures in turn for that long; pictures a second, and pictures in all."""
        self._connection.send(seconds)
        measured: tuple[float, int] = self._receive()
        return measured

    def _receive(self) -> Any:
        while not self._connection.poll(0.5):
            if not self._process.is_alive() and not self._connection.poll():
                raise RuntimeError(f"the bound's process ended with {self._process.exitcode}")
        answer = self._connection.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


class _RawEngine(Engine):
    """Runs networks one after the other and keeps the tensors of each run."""

    kind = "recording"

    def __init__(self, settings: Settings) -> None:
        served = open_engine(settings)
        if not isinstance(served, EmbeddedEngine):
            raise ValueError(f"the bound is one of the embedded engine, not of {served.kind}")
        self.runtime = served.settings
        self._configs = read_repository(settings.repository)
        self._networks = {n: OnnxModel(c, self.runtime) for n, c in self._configs.items() if c.onnx is not None}
        self.calls: list[Call] = []
        self.rows: dict[str, int] = {}

    async def start(self) -> None:
        """Nothing to do: the sessions are open."""

    async def infer(self, model: str, inputs: Tensors, *, timeout: float | None = None) -> dict[str, Any]:
        """Run a network, or an ensemble's steps in their order, and note each run."""
        config = self._configs[model]
        rows = len(next(iter(inputs.values())))
        self.rows[model] = self.rows.get(model, 0) + rows
        return self._run(config, inputs, rows)

    def _run(self, config: ModelConfig, inputs: Tensors, rows: int) -> dict[str, Array]:
        """Cut into runs as the embedded engine does."""
        network = self._networks.get(config.metadata.name)
        limit = config.metadata.max_batch_size if network is None else network.batching.max_rows
        parts = split_rows(inputs, rows, limit) if 0 < limit < rows else [dict(inputs)]
        return join_rows([self._run_part(config, part) for part in parts])

    def _run_part(self, config: ModelConfig, inputs: Tensors) -> dict[str, Array]:
        if not config.steps:
            names = [spec.name for spec in config.metadata.outputs]
            feeds = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
            session = self._networks[config.metadata.name].shared_session
            self.calls.append((session, names, feeds))
            return dict(zip(names, session.run(names, feeds), strict=True))
        flow = DataFlow(config, inputs)
        while not flow.finished:
            for step, feeds in flow.begin():
                flow.end(step, self._run(self._configs[step.model], feeds, len(next(iter(feeds.values())))))
        return flow.outputs()

    async def models(self) -> list[str]:
        """Names of what is loaded."""
        return sorted(self._configs)

    async def metadata(self, model: str) -> ModelMetadata:
        """The model's config."""
        return self._configs[model].metadata

    async def ready(self) -> bool:
        """Always."""
        return True

    async def close(self) -> None:
        """Nothing to do."""


def _serve(connection: Connection[Any, Any], pictures: list[bytes], options: dict[str, str]) -> None:
    """The child's loop: seconds in, rate out, until None comes."""
    try:
        recording, calls, workers = asyncio.run(_record(pictures, PoseOptions.model_validate(options)))
    except Exception as error:
        connection.send(RuntimeError(f"the bound could not be recorded: {error!r}"))
        return
    connection.send(recording)
    turns = itertools.cycle(calls)
    while (seconds := connection.recv()) is not None:
        connection.send(_run_round(turns, workers, seconds))


def _run_round(turns: Iterator[list[Call]], workers: int, seconds: float, lead_in: float = 0.2) -> tuple[float, int]:
    """Pictures a second after a lead-in, and pictures in all."""
    clock, done = Round(seconds, workers, lead_in), itertools.count()

    def work() -> None:
        while clock.goes_on():
            for session, names, feeds in next(turns):
                session.run(names, feeds)
            next(done)
            clock.completed()

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return rate(clock.moments, workers), next(done)


async def _record(pictures: list[bytes], options: PoseOptions) -> tuple[Recording, list[list[Call]], int]:
    settings = Settings()
    engine = _RawEngine(settings)
    pipeline = PosePipeline(engine, settings)
    detector = (await pipeline.presets.find(options.model))[1].name
    people, rows, calls = [], [], []
    for data in pictures:
        engine.calls, engine.rows = [], {}
        answer = await pipeline.run([Picture(data, 1)], options)
        people.append(len(answer.pictures[0].people))
        rows.append(sum(count for model, count in engine.rows.items() if model != detector))
        calls.append(engine.calls)
    pipeline.close()
    return Recording(people, [len(c) for c in calls], rows), calls, engine.runtime.concurrent_runs
