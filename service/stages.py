"""Where a request's time goes: seconds by stage, for ``Server-Timing``, the metrics, the log and traces."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol


class StageTrace(Protocol):
    """What wants to know when each stage begins and ends (:mod:`service.open_telemetry`)."""

    def stage(self, name: str, started: float) -> Callable[[float, bool], None]:
        """A stage began at ``started`` (``time.perf_counter``); gives what to call with its end, and if it failed."""
        ...


class Stages:
    """Seconds by stage of one request; a stage that runs several times (many pictures) adds up."""

    def __init__(self, trace: StageTrace | None = None) -> None:
        """``trace``: is told of every stage; None, as ever when tracing is off, costs nothing."""
        self.seconds: dict[str, float] = {}
        self.trace = trace
        self._lock = threading.Lock()  # pictures of one request are decoded by several threads

    def add(self, stage: str, seconds: float) -> None:
        """Add to a stage."""
        with self._lock:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def measure(self, stage: str) -> Measured:
        """``with stages.measure("decode"):`` adds the time of the block, also when it raises."""
        return Measured(self, stage)

    def copy(self) -> dict[str, float]:
        """Seconds by stage as they are now; threads of a request that was given up may still add to them."""
        with self._lock:
            return dict(self.seconds)

    def server_timing(self) -> str:
        """The value of a ``Server-Timing`` header (milliseconds, W3C Server Timing)."""
        return ", ".join(f"{stage};dur={seconds * 1e3:.2f}" for stage, seconds in self.copy().items())

    def milliseconds(self) -> dict[str, float]:
        """Milliseconds by stage, rounded to microseconds."""
        return {stage: round(seconds * 1e3, 3) for stage, seconds in self.copy().items()}


class Measured:
    """The time of one ``with`` block. A class: a generator's way in and out costs three times as much."""

    __slots__ = ("_end", "_name", "_stages", "_started")

    def __init__(self, stages: Stages, name: str) -> None:
        self._stages = stages
        self._name = name

    def __enter__(self) -> None:
        """Look at the clock."""
        self._started = time.perf_counter()
        trace = self._stages.trace
        self._end = trace.stage(self._name, self._started) if trace is not None else None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Look again."""
        ended = time.perf_counter()
        self._stages.add(self._name, ended - self._started)
        if self._end is not None:
            self._end(ended, kind is not None)
