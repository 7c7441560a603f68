"""Where a request's time goes: seconds by stage, for ``Server-Timing``, the metrics, the log and traces."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of the ``with`` block, also when it raises."""
        started = time.perf_counter()
        end = self.trace.stage(stage, started) if self.trace is not None else None
        failed = True
        try:
            yield
            failed = False
        finally:
            ended = time.perf_counter()
            self.add(stage, ended - started)
            if end is not None:
                end(ended, failed)

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
