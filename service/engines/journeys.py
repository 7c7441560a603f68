"""A request's whole way through work on pixels and networks, gone by the threads that run the networks."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any

from service.engines.base import Array, Ask, Tensors
from service.engines.calls import EngineCall, Loaded
from service.engines.config import ModelConfig
from service.engines.queues import Caller
from service.engines.tensors import check_inputs, empty_outputs
from service.errors import ServiceError


class Journey:
    """A coroutine that is begun as a job, and taken on by whichever thread has run what it waits for."""

    __slots__ = ("_call", "_caller", "_coroutine", "_loaded", "_since", "_work")

    def __init__(self, loaded: Loaded, caller: Caller, work: Callable[[Ask], Coroutine[Any, Any, Any]]) -> None:
        """``work`` makes the coroutine, as :meth:`Models.follow` says; ``caller`` gets what it returns or raises."""
        self._loaded = loaded
        self._caller = caller
        self._call = EngineCall(loaded, caller)
        self._work = work
        self._since = time.monotonic()  # its networks are as old as itself: what has been begun is ended

    def begin(self) -> None:
        """Go as far as the first network; in a worker thread."""
        self._coroutine = self._work(partial(_ask, self._loaded))
        self._go_on(None)

    def _go_on(self, outcome: dict[str, Array] | ServiceError | None) -> None:
        coroutine = self._coroutine
        if self._caller.gone:
            coroutine.close()
            return
        try:
            asked = coroutine.throw(outcome) if isinstance(outcome, ServiceError) else coroutine.send(outcome)
        except StopIteration as ended:
            self._caller.finish(ended.value)
        except Exception as error:  # the caller's, whatever it is
            self._caller.finish(error)
        else:
            if not isinstance(asked, _Question):
                coroutine.close()
                raise TypeError(f"only models may be awaited on a journey, not {asked!r}")
            self._call.begin(asked.config, -1, asked.inputs, self._go_on, self._since)


async def _ask(loaded: Loaded, model: str, inputs: Tensors) -> dict[str, Array]:
    # Knows nothing of the journey: one that is given up would wait, pixels and all, for the collector of cycles.
    config = loaded.config(model)
    if check_inputs(config.metadata, inputs) == 0:
        return empty_outputs(config.metadata)
    return await _Question(config, inputs)


class _Question:
    """What a journey waits for."""

    __slots__ = ("config", "inputs")

    def __init__(self, config: ModelConfig, inputs: Tensors) -> None:
        self.config = config
        self.inputs = inputs

    def __await__(self) -> Generator[_Question, dict[str, Array], dict[str, Array]]:
        return (yield self)
