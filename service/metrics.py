"""What Prometheus sees. One registry for each application, so that tests and several applications do not mix.

Where several workers serve one port, each keeps its figures in files and a scrape shows all together
(:mod:`service.metric_files`): counters and histograms are added up, and each gauge says below how it is joined.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Literal

from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from service import __version__, errors
from service.admission import Admission
from service.engine_metrics import ROWS, EngineMetrics, Steps
from service.engines.base import Engine
from service.metric_files import WORKER_ENDS, WORKER_ENDS_TEXT, MetricFiles
from service.people import PosedPicture
from service.stages import Stages

# The time at which each series began, as a series of its own: twice as many of them, and nobody asks.
disable_created_metrics()

# From a cached detector on a GPU to a hundred photographs on a laptop; 30 s is the default deadline.
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# Why requests are refused: the problem types, and what is finer than they are. Anything else counts as "other", so that
# the number of time series stays bounded.
REASONS = frozenset(
    {kind.type for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ServiceError)}
    | {"queue-full", "queue-bytes", "queue-pixels", "queue-people", "queue-deadline", "queue-share"}
    | {"rate", "concurrency", "connections"}
    | {"caller-deadline", "other"}
)
State = Literal["starting", "ready", "unready", "draining"]
STATES: tuple[State, ...] = ("starting", "ready", "unready", "draining")
# A scrape is milliseconds of the interpreter, and anybody may ask for one: at most a twentieth of its time goes there.
_SCRAPE_REST = 20.0
_MAX_REST_SECONDS = 1.0
# How the figures of several processes make one; prometheus_client's own collector reads a single process.
_PROCESS = {"process_start_time_seconds": "livemin", "process_max_fds": "livemin"}


class Metrics:
    """The service's counters and histograms."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._files = MetricFiles.of_this_process()
        self._admission: Admission | None = None
        self._engine: EngineMetrics | None = None
        self._state: Callable[[], State] | None = None
        self._scrape: asyncio.Future[bytes] | None = None
        self._stale_at = 0.0
        self._process = _ProcessMetrics(self.registry) if self._files else None
        if self._files is None:
            for collector in (GC_COLLECTOR, PLATFORM_COLLECTOR):
                self.registry.register(collector)
            ProcessCollector(registry=self.registry)

        self._requests = _Series(self._counter("requests", "Requests by route and status.", "route", "status"))
        self._rejected = self._counter("rejected", "Requests that were refused or failed, by reason.", "reason")
        self._duration = _Series(
            self._histogram(
                "request_seconds",
                "Seconds from a request's head to its answer's, less those its body took to come.",
                "route",
            )
        )
        self._stages = _Series(
            self._histogram("stage_seconds", "Seconds of an answered pose request by stage.", "stage")
        )
        self.people = self._histogram("people_per_image", "People answered for each picture.", buckets=(0, *ROWS))
        self._engine_rows = _Series(
            self._histogram(
                "engine_rows",
                "Rows of each engine call (pictures for a detector, crops for a pose model).",
                "model",
                buckets=ROWS,
            )
        )
        self.running = self._gauge("requests_running", "Pose requests worked on now.")
        self.waiting = self._gauge("requests_waiting", "Pose requests that arrive or wait for their turn.")
        self.queue_bytes = self._gauge("queue_bytes", "Bytes of the bodies of pose requests in flight.")
        self.queue_pixels = self._gauge("queue_pixels", "Pixels of the pictures of pose requests in flight.")
        self.queue_people = self._gauge("queue_people", "People expected in the pictures of pose requests in flight.")
        self.ready = self._gauge("ready", "1 when the models answer (in at least one worker).", across="livemax")
        self.workers = self._gauge("workers", "Processes that serve, by state.", "state")
        self._info = self._gauge(
            "info", "1: version of the service and kind of its engine.", "version", "engine", across="livemax"
        )
        self._ends = self._counter(WORKER_ENDS.removeprefix("tritonpose_"), WORKER_ENDS_TEXT, "reason")
        for reason in REASONS:
            self._rejected.labels(reason)  # 0 from the start: a rate needs a value before the first one
        for reason in ("died", "hung", "restarted"):
            self._ends.labels(reason)

    def watch(self, admission: Admission, engine: Engine) -> None:
        """Show how full the queue is, and the engine's own figures."""
        self._admission = admission
        self._engine = EngineMetrics(engine, self.registry)
        self._info.labels(__version__, engine.kind).set(1)

    def watch_state(self, state: Callable[[], State]) -> None:
        """Show the service's state: what ``state`` gives, on the event loop."""
        self._state = state

    def ended(self, route: str, status: int, seconds: float, stages: Stages) -> None:
        """Count a request and its time; of an answered pose request also where the time went."""
        self._requests[route, str(status)].inc()
        self._duration[(route,)].observe(max(0.0, seconds))
        if stages.seconds and 0 < status < 400:
            for stage, spent in stages.copy().items():
                self._stages[(stage,)].observe(spent)

    def engine_called(self, model: str, rows: int) -> None:
        """Count a call of a model."""
        self._engine_rows[(model,)].observe(rows)

    def rejected(self, reason: str) -> None:
        """Count a request that was refused or failed, by one of :data:`REASONS`."""
        self._rejected.labels(reason if reason in REASONS else "other").inc()

    def people_answered(self, pictures: list[PosedPicture]) -> None:
        """Count the people of each picture."""
        for picture in pictures:
            self.people.observe(len(picture.people))

    @property
    def shared(self) -> bool:
        """Whether other workers show this process's figures, so that :meth:`refresh` must not wait for a scrape."""
        return self._files is not None

    def refresh(self) -> None:
        """Read what is counted elsewhere. On the event loop."""
        if self._admission is not None:
            _, *held = self._admission.held
            for gauge, amount in zip((self.queue_bytes, self.queue_pixels, self.queue_people), held, strict=True):
                gauge.set(amount)
            self.running.set(self._admission.running)
            self.waiting.set(self._admission.waiting)
        if self._state is not None:
            now = self._state()
            self.ready.set(float(now == "ready"))
            for state in STATES:
                self.workers.labels(state).set(float(state == now))
        if self._engine is not None:
            self._engine.refresh()
        if self._process is not None:
            self._process.refresh()

    def text(self) -> bytes:
        """The exposition format that Prometheus scrapes, as of the last :meth:`refresh`. In any thread."""
        return generate_latest(self.registry) if self._files is None else self._files.text()

    async def scrape(self) -> bytes:
        """:meth:`text` for whoever asks: one is made at a time, and is given to all who come while it is fresh.

        Fresh for twenty times as long as it took to make, a second at most.
        """
        if self._scrape is None or (self._scrape.done() and time.monotonic() >= self._stale_at):
            self.refresh()
            self._scrape = asyncio.ensure_future(self._make())
        return await asyncio.shield(self._scrape)  # the next one wants it when this caller has gone

    async def _make(self) -> bytes:
        started = time.monotonic()
        text = await asyncio.to_thread(self.text)  # of several workers: milliseconds, and a lock that others may have
        ended = time.monotonic()
        self._stale_at = ended + min(_MAX_REST_SECONDS, _SCRAPE_REST * (ended - started))
        return text

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"tritonpose_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str, across: Any = "livesum") -> Gauge:
        return Gauge(f"tritonpose_{name}", text, labels, registry=self.registry, multiprocess_mode=across)

    def _histogram(self, name: str, text: str, *labels: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(f"tritonpose_{name}", text, labels, buckets=buckets, registry=self.registry)


class _Series(dict[tuple[str, ...], Any]):
    """A metric's series by their labels' values: prometheus_client takes a lock for each look, and makes texts."""

    def __init__(self, metric: Counter | Histogram) -> None:
        super().__init__()
        self._metric = metric

    def __missing__(self, labels: tuple[str, ...]) -> Any:
        series = self[labels] = self._metric.labels(*labels)
        return series


class _ProcessMetrics:
    """``process_*`` of each worker, to be added up: prometheus_client's collector sees only the process it runs in."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._source = ProcessCollector(registry=None)
        self._registry = registry
        self._gauges: dict[str, Gauge] = {}
        self._cpu = Counter("process_cpu_seconds", "User and system CPU time of all workers.", registry=registry)
        self._steps = Steps()

    def refresh(self) -> None:
        for family in self._source.collect():
            for sample in family.samples:
                if sample.name == "process_cpu_seconds_total":
                    self._cpu.inc(self._steps.of("cpu", sample.value))
                else:
                    self._gauge(sample.name, family.documentation).set(sample.value)

    def _gauge(self, name: str, text: str) -> Gauge:
        if name not in self._gauges:
            across: Any = _PROCESS.get(name, "livesum")
            self._gauges[name] = Gauge(name, text, registry=self._registry, multiprocess_mode=across)
        return self._gauges[name]
