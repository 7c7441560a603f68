"""Metrics of several worker processes as one: each writes into files of its own, a scrape of any of them reads all.

prometheus_client keeps values in mapped files where ``PROMETHEUS_MULTIPROC_DIR`` names a folder when it is imported;
the supervisor (:mod:`service.supervisor`) sets it for its workers. A worker that ends leaves its counters behind: they
are added to those of all that ended before, so that no sum ever falls and files do not pile up.
"""

from __future__ import annotations

import fcntl
import os
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest, values
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
# The supervisor's own.
WORKER_ENDS = "tritonpose_worker_ends"
WORKER_ENDS_TEXT = "Workers that were replaced: they died, hung, or were restarted by SIGHUP."
_KINDS = ("counter", "histogram")


class MetricFiles:
    """The folder that workers and their supervisor share.

    A lock keeps a scrape from seeing a worker's counters twice, or not at all, while they are moved. Scrapes wait for
    it, one after the other; the supervisor never does: it has workers to look after, and one that hangs may have it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._owed: deque[Callable[[], None]] = deque()

    @classmethod
    def of_this_process(cls) -> MetricFiles | None:
        """The files that this process writes its metrics to; None where it keeps them in memory."""
        shared = getattr(values.ValueClass, "_multiprocess", False)
        return cls(Path(os.environ[VARIABLE])) if shared else None

    def text(self) -> bytes:
        """All workers' metrics in the format that Prometheus scrapes."""
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(self.folder))
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return generate_latest(registry)

    def retire(self, pid: int) -> None:
        """Forget the gauges of a worker that ended, and keep what it has counted; now, or with :meth:`settle`."""
        self._owed.append(partial(self._retire, pid))
        self.settle()

    def count(self, name: str, help_text: str, **labels: str) -> None:
        """Add one to a counter of the supervisor's own, which has no metrics: ``name`` without ``_total``.

        Now, or with :meth:`settle`.
        """
        key = mmap_key(name, f"{name}_total", list(labels), list(labels.values()), help_text)
        self._owed.append(partial(self._add, "counter", key, 1.0))
        self.settle()

    def settle(self) -> bool:
        """Do what could not be done while somebody scraped. Whether nothing is left; never waits."""
        if not self._owed:
            return True
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            while self._owed:
                self._owed.popleft()()
        return True

    def _retire(self, pid: int) -> None:
        mark_process_dead(pid, str(self.folder))
        for kind in _KINDS:
            ended = self.folder / f"{kind}_{pid}.db"
            if not ended.is_file():
                continue
            for key, value, _, _ in MmapedDict.read_all_values_from_file(str(ended)):
                self._add(kind, key, value)
            ended.unlink()

    def _add(self, kind: str, key: str, value: float) -> None:
        kept = MmapedDict(str(self.folder / f"{kind}_ended.db"))
        try:
            kept.write_value(key, kept.read_value(key)[0] + value, 0.0)
        finally:
            kept.close()
