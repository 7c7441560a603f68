"""A network that is replaced leaves the memory: the scheduler keeps nothing of it."""

from __future__ import annotations

import weakref

import numpy as np
from onnxruntime import RunOptions

from service.engines.base import Array, Tensors
from service.engines.batching import BatchScheduler
from service.engines.config import BatchPolicy
from service.engines.queues import Caller
from service.errors import EngineUnavailable


class Network:
    """Stands for a session of a hundred megabytes."""

    def __call__(self, inputs: Tensors, options: RunOptions, alone: bool) -> dict[str, Array]:
        return dict(inputs)


async def test_a_removed_network_is_let_go_at_once() -> None:
    """Also when something waited for it: on an idle service nobody looks at the queues for hours."""
    scheduler = BatchScheduler(workers=0)
    network = Network()
    alive = weakref.ref(network)
    scheduler.add("model", network, BatchPolicy(max_rows=8))
    told: list[object] = []
    scheduler.submit(Caller(scheduler), "model", [{"x": np.ones((1, 1), np.float32)}], told.append)
    del network
    assert alive() is not None
    scheduler.remove("model")
    assert isinstance(told[0], EngineUnavailable)
    assert alive() is None
    scheduler.stop(0)
