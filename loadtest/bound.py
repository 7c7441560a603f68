"""The bound: the networks alone, on the very tensors that the pipeline makes of the same pictures.

A child process runs the service's own pipeline once for each picture and notes the tensors of every network call.
Rounds then run these calls through the raw ONNX Runtime sessions, opened as the service opens them, and nothing
else: no HTTP, no decoding, no crops, no suppression. What the service reaches of that rate is the bench's ratio.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from service.engines.base import Engine, ModelMetadata, Tensors
from service.engines.config import ModelConfig, read_repository
from service.engines.sessions import OnnxModel, RuntimeSettings
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

    def run(self, seconds: float) -> float:
        """Run the calls of all pictures in turn for that long; pictures a second."""
        self._connection.send(seconds)
        rate: float = self._receive()
        return rate

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
        runtime = RuntimeSettings(intra_op_threads=settings.threads)
        self._configs = read_repository(settings.repository)
        self._networks = {name: OnnxModel(c, runtime) for name, c in self._configs.items() if c.onnx is not None}
        self.calls: list[Call] = []
        self.rows: dict[str, int] = {}

    async def start(self) -> None:
        """Nothing to do: the sessions are open."""

    async def infer(self, model: str, inputs: Tensors, *, timeout: float | None = None) -> dict[str, Any]:
        """Run a network, or an ensemble's steps in their order, and note each run."""
        config = self._configs[model]
        rows = len(next(iter(inputs.values())))
        self.rows[model] = self.rows.get(model, 0) + rows
        limit = config.metadata.max_batch_size or rows
        parts = -(-rows // limit)  # as even as the engine cuts them
        edges = [round(k * rows / parts) for k in range(parts + 1)]
        answers = [self._run(config, {name: array[a:b] for name, array in inputs.items()}) for a, b in pairwise(edges)]
        return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}

    def _run(self, config: ModelConfig, inputs: Tensors) -> dict[str, Array]:
        if not config.steps:
            names = [spec.name for spec in config.metadata.outputs]
            feeds = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
            session = self._networks[config.metadata.name].session
            self.calls.append((session, names, feeds))
            return dict(zip(names, session.run(names, feeds), strict=True))
        tensors: dict[str, Array] = dict(inputs)
        waiting = list(config.steps)
        while waiting:
            step = next(s for s in waiting if all(source in tensors for source in s.inputs.values()))
            waiting.remove(step)
            outputs = self._run(self._configs[step.model], {n: tensors[source] for n, source in step.inputs.items()})
            tensors |= {target: outputs[name] for name, target in step.outputs.items()}
        return {spec.name: tensors[spec.name] for spec in config.metadata.outputs}

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
        recording, calls = asyncio.run(_record(pictures, PoseOptions.model_validate(options)))
    except Exception as error:
        connection.send(RuntimeError(f"the bound could not be recorded: {error!r}"))
        return
    connection.send(recording)
    turn = 0
    while (seconds := connection.recv()) is not None:
        begin, done = time.perf_counter(), 0
        while (now := time.perf_counter()) < begin + seconds:
            for session, names, feeds in calls[turn % len(calls)]:
                session.run(names, feeds)
            turn, done = turn + 1, done + 1
        connection.send(done / (now - begin))


async def _record(pictures: list[bytes], options: PoseOptions) -> tuple[Recording, list[list[Call]]]:
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
    return Recording(people, [len(c) for c in calls], rows), calls
