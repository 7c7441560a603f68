"""What an engine counts itself, carried over into the metrics whenever somebody scrapes.

The embedded engine counts runs of networks; the Triton engine its calls (the server's own figures are on Triton's
metrics port); both know the versions that answer and what became of newer ones.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service.engines.base import Engine
from service.engines.statistics import ModelStatistics, TransportStatistics

# Rows of one call or run: pictures for a detector, crops for a pose model.
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)
_COUNTED = {
    "requests": "Calls of a network.",
    "rejected": "Calls refused because the queue was full.",
    "abandoned": "Calls that ended before all of their rows were answered: caller gone or time up.",
    "failed_runs": "Runs that failed.",
    "queue_seconds": "Seconds that calls waited for a batch.",
    "compute_seconds": "Seconds that networks ran.",
}


class Steps:
    """Turns numbers that grow elsewhere into steps of a counter."""

    def __init__(self) -> None:
        self._before: dict[object, float] = {}

    def of(self, key: object, now: float) -> float:
        """How much was added since the last time; all of it where the number has begun anew."""
        before = self._before.get(key, 0.0)
        self._before[key] = now
        return now - before if now >= before else now


class EngineMetrics:
    """An engine's metrics. :meth:`refresh` reads the engine, on its event loop."""

    def __init__(self, engine: Engine, registry: CollectorRegistry) -> None:
        self._engine = engine
        self._steps = Steps()
        self._versions: dict[str, int] = {}
        self._derived: Tally[str] = Tally(taken=0, refused=0)
        self._refused: str | None = None

        def gauge(name: str, text: str, labels: tuple[str, ...] = (), across: Any = "livemax") -> Gauge:
            return Gauge(f"tritonpose_{name}", text, labels, registry=registry, multiprocess_mode=across)

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"tritonpose_{name}", text, labels, registry=registry)

        self._up = gauge("engine_up", "1 while the engine can be asked, as far as is known.", across="livemin")
        self._update_refused = gauge(
            "update_refused", "1 while the models in the repository are refused and older ones answer."
        )
        self._updates = counter(
            "updates", "Changes of the model repository, taken over or refused (each worker counts).", ("outcome",)
        )
        self._version = gauge("model_version", "The version that answers.", ("model",))
        self._info = gauge("model_info", "1 for the version that answers, 0 for those before it.", ("model", "version"))
        if hasattr(engine, "statistics"):
            self._batch = Histogram(
                "tritonpose_engine_batch", "Rows of each run of a network.", ["model"], buckets=ROWS, registry=registry
            )
            self._counted = {field: counter(f"engine_{field}", text, ("model",)) for field, text in _COUNTED.items()}
            self._queued = gauge("engine_queued", "Calls that wait for a run.", ("model",), across="livesum")
        if hasattr(engine, "transport"):
            self._shared_memory = gauge(
                "engine_shared_memory",
                "1 while large inputs go through shared memory, 0 while all travel.",
                across="livemin",
            )
            self._calls = counter(
                "engine_calls",
                "Calls of the server by outcome: ok, cancelled, or the type of the problem.",
                ("model", "outcome"),
            )
            self._sent = counter("engine_sent_bytes", "Bytes of inputs by the way they took.", ("transport",))
            self._retries = counter("engine_retries", "Calls that found no connection and were sent again.")

    def refresh(self) -> None:
        """Carry over what the engine has counted since the last time."""
        engine: Any = self._engine
        self._up.set(float(engine.unavailable is None))
        self._update_refused.set(float(engine.refused is not None))
        self._models(engine)
        if hasattr(engine, "statistics"):
            self._runs(engine.statistics())
        if hasattr(engine, "transport"):
            self._transport(engine.transport)

    def _models(self, engine: Any) -> None:
        versions: dict[str, int] = dict(engine.versions()) if hasattr(engine, "versions") else {}
        for model in versions.keys() | self._versions.keys():
            before, now = self._versions.get(model), versions.get(model)
            if before is not None and before != now:
                self._info.labels(model, str(before)).set(0)  # files of several workers cannot forget a series
            if now is not None:
                self._version.labels(model).set(now)
                self._info.labels(model, str(now)).set(1)
        # A server takes and refuses models on its own: what changed between two scrapes counts as one.
        self._derived["taken"] += bool(self._versions and versions and versions != self._versions)
        self._derived["refused"] += bool(engine.refused and engine.refused != self._refused)
        self._versions, self._refused = versions or self._versions, engine.refused
        updates: Mapping[str, int] = getattr(engine, "updates", self._derived)
        for outcome, count in updates.items():
            self._updates.labels(outcome).inc(self._steps.of(("updates", outcome), count))

    def _runs(self, statistics: Mapping[str, ModelStatistics]) -> None:
        for model, counted in statistics.items():
            for field, counter in self._counted.items():
                counter.labels(model).inc(self._steps.of((field, model), getattr(counted, field)))
            self._queued.labels(model).set(counted.queued)
            batch = self._batch.labels(model)
            for rows, runs in sorted(counted.batch_sizes.items()):
                for _ in range(round(self._steps.of((model, rows), runs))):
                    batch.observe(rows)

    def _transport(self, transport: TransportStatistics) -> None:
        self._shared_memory.set(float(transport.shared_memory))
        for (model, outcome), count in list(transport.calls.items()):
            self._calls.labels(model, outcome).inc(self._steps.of((model, outcome), count))
        for way in ("grpc", "shared_memory"):
            self._sent.labels(way).inc(self._steps.of(way, transport.sent_bytes[way]))
        self._retries.inc(self._steps.of("retries", transport.retries))
