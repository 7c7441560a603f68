"""What Prometheus sees. One registry for each application, so that tests and several applications do not mix."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from service import errors
from service.admission import Admission
from service.engines.base import Engine
from service.people import PosedPicture
from service.stages import Stages

# From a cached detector on a GPU to a hundred photographs on a laptop.
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)
# Why requests are refused: the problem types, and what is finer than they are. Anything else counts as "other", so that
# the number of time series stays bounded.
REASONS = frozenset(
    {kind.type for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ServiceError)}
    | {"queue-full", "queue-bytes", "queue-pixels", "queue-people", "rate", "concurrency"}
    | {"body-bytes", "image-bytes", "image-pixels", "images", "other"}
)


class Metrics:
    """The service's counters and histograms."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        for collector in (GC_COLLECTOR, PLATFORM_COLLECTOR):
            self.registry.register(collector)
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "tritonpose_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self._rejected = Counter(
            "tritonpose_rejected",
            "Requests that were refused or failed, by reason.",
            ["reason"],
            registry=self.registry,
        )
        for reason in REASONS:
            self._rejected.labels(reason)  # 0 from the start: a rate needs a value before the first one
        self.duration = Histogram(
            "tritonpose_request_seconds",
            "Seconds from the first byte of a request to the last of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.stages = Histogram(
            "tritonpose_stage_seconds",
            "Seconds of a pose request by stage.",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.people = Histogram(
            "tritonpose_people_per_image",
            "People answered for each picture.",
            buckets=(0, *_ROWS),
            registry=self.registry,
        )
        self.engine_rows = Histogram(
            "tritonpose_engine_rows",
            "Rows of each engine call (pictures for a detector, crops for a pose model).",
            ["model"],
            buckets=_ROWS,
            registry=self.registry,
        )
        self.running = Gauge("tritonpose_requests_running", "Pose requests worked on now.", registry=self.registry)
        self.waiting = Gauge(
            "tritonpose_requests_waiting", "Pose requests that arrive or wait for their turn.", registry=self.registry
        )
        self.ready = Gauge("tritonpose_ready", "1 when the models answer.", registry=self.registry)

    def watch(self, admission: Admission, engine: Engine) -> None:
        """Read the gauges and the engine's own counters whenever somebody scrapes."""
        self.running.set_function(lambda: admission.running)
        self.waiting.set_function(lambda: admission.waiting)
        self.registry.register(_EngineCounters(engine))

    def rejected(self, reason: str) -> None:
        """Count a request that was refused or failed, by one of :data:`REASONS`."""
        self._rejected.labels(reason if reason in REASONS else "other").inc()

    def people_answered(self, pictures: list[PosedPicture]) -> None:
        """Count the people of each picture."""
        for picture in pictures:
            self.people.observe(len(picture.people))

    def answered(self, stages: Stages) -> None:
        """Record where the time of one answered pose request went."""
        for stage, seconds in stages.seconds.items():
            self.stages.labels(stage).observe(seconds)

    def text(self) -> bytes:
        """The exposition format that Prometheus scrapes."""
        return generate_latest(self.registry)


class _EngineCounters(Collector):
    """Counters that an engine keeps itself (the embedded one: Triton has a metrics port of its own)."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """Made anew for each scrape."""
        yield from self._updates()
        yield from self._transport()
        statistics: dict[str, Any] = getattr(self._engine, "statistics", dict)()
        if not statistics:
            return
        batches = HistogramMetricFamily("tritonpose_engine_batch", "Rows of each run of a network.", labels=["model"])
        counters = [
            ("requests", "Calls of a network."),
            ("rejected", "Calls refused because the queue was full."),
            ("failed_runs", "Runs that failed."),
            ("queue_seconds", "Seconds that calls waited for a batch."),
            ("compute_seconds", "Seconds that networks ran."),
        ]
        families = [
            (field, CounterMetricFamily(f"tritonpose_engine_{field}", text, labels=["model"]))
            for field, text in counters
        ]
        for model, counted in statistics.items():
            below = accumulate(counted.batch_sizes.get(size, 0) for size in range(1, max(_ROWS) + 1))
            cumulated = list(below)
            buckets = [(str(float(bound)), cumulated[bound - 1]) for bound in _ROWS]
            batches.add_metric([model], [*buckets, ("+Inf", counted.runs)], sum_value=counted.rows)
            for field, family in families:
                family.add_metric([model], getattr(counted, field))
        yield batches
        for _, family in families:
            yield family

    def _transport(self) -> Iterator[Metric]:
        """How the calls of a server in another process went."""
        up = GaugeMetricFamily("tritonpose_engine_up", "1 while the engine can be asked, as far as is known.")
        up.add_metric([], float(self._engine.unavailable is None))
        yield up
        transport = getattr(self._engine, "transport", None)
        if transport is None:
            return
        shared = GaugeMetricFamily(
            "tritonpose_engine_shared_memory", "1 while large inputs go through shared memory, 0 while all travel."
        )
        shared.add_metric([], float(transport.shared_memory))
        yield shared
        calls = CounterMetricFamily(
            "tritonpose_engine_calls",
            "Calls of the server by outcome: ok, cancelled, or the type of the problem.",
            labels=["model", "outcome"],
        )
        for (model, outcome), count in sorted(transport.calls.items()):
            calls.add_metric([model, outcome], count)
        yield calls
        sent = CounterMetricFamily(
            "tritonpose_engine_sent_bytes", "Bytes of inputs by the way they took.", labels=["transport"]
        )
        for way in ("grpc", "shared_memory"):
            sent.add_metric([way], transport.sent_bytes[way])
        yield sent
        retries = CounterMetricFamily(
            "tritonpose_engine_retries", "Calls that found no connection and were sent again."
        )
        retries.add_metric([], transport.retries)
        yield retries

    def _updates(self) -> Iterator[Metric]:
        """What became of changes in the model repository."""
        refused = GaugeMetricFamily(
            "tritonpose_update_refused", "1 while the models in the repository are refused and older ones answer."
        )
        refused.add_metric([], float(self._engine.refused is not None))
        yield refused
        updates: dict[str, int] = getattr(self._engine, "updates", {})
        if updates:
            counter = CounterMetricFamily(
                "tritonpose_updates", "Changes of the model repository, taken over or refused.", labels=["outcome"]
            )
            for outcome, count in sorted(updates.items()):
                counter.add_metric([outcome], count)
            yield counter
        versions: dict[str, int] = getattr(self._engine, "versions", dict)()
        if versions:
            gauge = GaugeMetricFamily("tritonpose_model_version", "The version that answers.", labels=["model"])
            for model, version in versions.items():
                gauge.add_metric([model], version)
            yield gauge
