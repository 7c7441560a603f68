"""One request's way through networks and ensembles, driven by the threads that run the networks.

Each run's end begins what follows from it there and then. A step of the event loop between would cost each picture
a millisecond of the loop's time, and leave a worker idle until the loop gets to it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from service.engines.base import Array, Tensors
from service.engines.batching import BatchScheduler
from service.engines.config import ModelConfig, Step
from service.engines.ensembles import DataFlow
from service.engines.queues import Caller
from service.engines.sessions import OnnxModel
from service.engines.tensors import check_inputs, join_rows, split_rows
from service.errors import InferenceFailed, ModelNotFound, ServiceError

# Takes a model's outputs, or why there are none; called once, in any thread.
Done = Callable[[dict[str, Array] | ServiceError], None]


@dataclass(frozen=True)
class Network:
    """A loaded network, shared by the generations in which its file and config are the same.

    Attributes:
        key: of its queue.
        model: the session.
        origin: what it was loaded from; equal origins are equal networks.
    """

    key: str
    model: OnnxModel
    origin: object


@dataclass(frozen=True)
class Loaded:
    """Models that can be called.

    Attributes:
        configs: by name.
        networks: by name and version: the latest, and those that ensembles name.
        scheduler: that has a queue for each network.
    """

    configs: Mapping[str, ModelConfig]
    networks: Mapping[tuple[str, int], Network]
    scheduler: BatchScheduler

    def config(self, model: str) -> ModelConfig:
        """The model's config. Raises ModelNotFound."""
        config = self.configs.get(model)
        if config is None:
            raise ModelNotFound(f"model {model!r} is not loaded; there are {sorted(self.configs)}")
        return config


class EngineCall:
    """What one caller asks of loaded models."""

    __slots__ = ("_caller", "_loaded")

    def __init__(self, loaded: Loaded, caller: Caller) -> None:
        self._loaded = loaded
        self._caller = caller

    def begin(self, config: ModelConfig, version: int, inputs: Tensors, done: Done, since: float | None = None) -> None:
        """Run a network or an ensemble; returns at once. A refusal comes to ``done`` as well.

        Args:
            config: the model's.
            version: of a network; -1 for the latest.
            inputs: checked against the config, of one row or more.
            done: gets the outputs.
            since: as in :meth:`BatchScheduler.submit`; parts of an ensemble's request begin anew, each in its turn.
        """
        network = self._network(config, version)
        limit = config.metadata.max_batch_size if network is None else network.model.batching.max_rows
        # In the config's order, so that the batcher can compare shapes without looking at names.
        inputs = {spec.name: inputs[spec.name] for spec in config.metadata.inputs}
        rows = next(iter(inputs.values())).shape[0] if limit else 1
        parts = split_rows(inputs, rows, limit) if 0 < limit < rows else [inputs]
        if network is None:
            since = since if len(parts) == 1 else None
            _InTurn(iter(parts), partial(self._begin_steps, config, since), done).go_on()
            return
        try:
            self._loaded.scheduler.submit(self._caller, network.key, parts, partial(_join, done), since)
        except ServiceError as error:
            done(error)

    def _begin_steps(self, config: ModelConfig, since: float | None, inputs: Tensors, done: Done) -> None:
        _Steps(self, config, inputs, done, since).go_on()

    def runs_at_once(self, step: Step) -> bool:
        """Whether the thread that begins this step runs it there and then."""
        network = self._network(self._loaded.configs[step.model], step.version)
        return network is not None and network.model.batching.at_once

    def _network(self, config: ModelConfig, version: int) -> Network | None:
        """None for an ensemble."""
        return self._loaded.networks.get((config.metadata.name, config.version if version == -1 else version))

    def begin_step(self, ensemble: str, step: Step, inputs: Tensors, done: Done, since: float) -> None:
        """Run one step of an ensemble on what earlier steps have written."""
        config = self._loaded.configs[step.model]
        try:
            check_inputs(config.metadata, inputs)
        except ValueError as error:  # not the caller's tensors: an earlier step's output
            done(InferenceFailed(f"ensemble {ensemble!r}: {error}"))
            return
        self.begin(config, step.version, inputs, done, since)


class _InTurn:
    """Parts of a large request, one after the other: the maps between an ensemble's steps must not pile up."""

    __slots__ = ("_begin", "_done", "_outputs", "_parts")

    def __init__(self, parts: Iterator[Tensors], begin: Callable[[Tensors, Done], None], done: Done) -> None:
        self._parts, self._begin, self._done = parts, begin, done
        self._outputs: list[dict[str, Array]] = []

    def go_on(self) -> None:
        part = next(self._parts, None)
        if part is None:
            self._done(join_rows(self._outputs))
        else:
            self._begin(part, self._ended)

    def _ended(self, outcome: dict[str, Array] | ServiceError) -> None:
        if isinstance(outcome, ServiceError):
            self._done(outcome)
        else:
            self._outputs.append(outcome)
            self.go_on()


class _Steps:
    """One run of an ensemble; each step begins as soon as its inputs are there."""

    __slots__ = ("_call", "_done", "_failed", "_flow", "_lock", "_name", "_since")

    def __init__(self, call: EngineCall, config: ModelConfig, inputs: Tensors, done: Done, since: float | None) -> None:
        self._call = call
        self._name = config.metadata.name
        self._flow = DataFlow(config, inputs)
        self._done = done
        self._failed = False
        self._since = time.monotonic() if since is None else since
        self._lock = threading.Lock()  # steps that run at the same time end in different threads

    def go_on(self) -> None:
        with self._lock:
            ready = self._flow.begin()
        if len(ready) > 1:
            # What this thread runs itself comes last: the others are taken by workers that are free meanwhile.
            ready.sort(key=lambda begun: self._call.runs_at_once(begun[0]))
        for step, inputs in ready:
            self._call.begin_step(self._name, step, inputs, partial(self._ended, step), self._since)

    def _ended(self, step: Step, outcome: dict[str, Array] | ServiceError) -> None:
        with self._lock:
            if self._failed:
                return
            if isinstance(outcome, ServiceError):
                self._failed = True
            else:
                self._flow.end(step, outcome)
            finished = self._flow.finished
        if isinstance(outcome, ServiceError):
            self._done(outcome)
        elif finished:
            self._done(self._flow.outputs())
        else:
            self.go_on()


def _join(done: Done, outcome: list[dict[str, Array]] | ServiceError) -> None:
    done(outcome if isinstance(outcome, ServiceError) else join_rows(outcome))
