"""Resident memory of a service over time, and whether it grows."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from loadtest.server import process_tree, resident_mb

# Start, first batches and the allocator's pools are no leak: the first part of a run is left out.
WARM_UP = 0.2
_WINDOW = 0.2


@dataclass(frozen=True)
class Growth:
    """Of the samples after the warm-up. MB are 10^6 bytes.

    Attributes:
        first: median of the first fifth.
        last: median of the last fifth.
        peak: largest sample of all.
        slope: MB a minute: the median of the slopes between samples of the first and the second half (Theil and Sen's
            estimate over far pairs), which one spike cannot bend.
        minutes: how long they span.
    """

    first: float
    last: float
    peak: float
    slope: float
    minutes: float

    @property
    def mb(self) -> float:
        """The growth: the larger of what the medians say and what the slope makes of the time."""
        return max(self.last - self.first, self.slope * self.minutes)


def growth(seconds: Sequence[float], mb: Sequence[float], warm_up: float = WARM_UP) -> Growth:
    """Fit samples. Raises ValueError for fewer than ten after the warm-up."""
    times, sizes = np.asarray(seconds, float), np.asarray(mb, float)
    steady = times >= times[0] + warm_up * (times[-1] - times[0]) if len(times) else np.zeros(0, bool)
    times_left, left = times[steady], sizes[steady]
    if len(left) < 10:
        raise ValueError(f"{len(left)} samples of memory after the warm-up: a longer run is needed")
    window, half = max(1, int(_WINDOW * len(left))), len(left) // 2
    slopes = (left[-half:] - left[:half]) / (times_left[-half:] - times_left[:half])
    return Growth(
        first=float(np.median(left[:window])),
        last=float(np.median(left[-window:])),
        peak=float(sizes.max()),
        slope=float(np.median(slopes)) * 60,
        minutes=float(times_left[-1] - times_left[0]) / 60,
    )


def tree_mb(pid: int) -> float | None:
    """Resident memory of a process and all that come of it (workers); None where /proc does not tell."""
    if resident_mb(pid) is None:
        return None
    return sum(resident_mb(one) or 0.0 for one in process_tree(pid))


class MemoryWatch:
    """Samples a service's memory from a thread; a context manager.

    Attributes:
        seconds: since the beginning, of each sample.
        mb: the samples.
    """

    def __init__(self, pid: int, every: float = 1.0) -> None:
        self._pid, self._every = pid, every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.seconds: list[float] = []
        self.mb: list[float] = []

    def __enter__(self) -> MemoryWatch:
        self._began = time.monotonic()
        self._sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            self._sample()

    def _sample(self) -> None:
        size = tree_mb(self._pid)
        if size is not None:
            self.seconds.append(time.monotonic() - self._began)
            self.mb.append(size)
