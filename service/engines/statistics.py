"""What an engine counts for each model: plain numbers that a metrics endpoint can read at any time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class ModelStatistics:
    """Counters of one model since the engine started (ensembles are counted in their parts).

    A *request* is one call for this model (an ensemble's step is one), a *part* is a piece of it of at most
    ``max_batch_size`` rows, and a *run* is one execution of the network, for one part or several joined.
    """

    requests: int = 0
    rejected: int = 0
    """Requests refused because the queue was full."""
    abandoned: int = 0
    """Requests that ended before all of their parts were answered: caller gone, time up, or another part failed."""
    failed_runs: int = 0
    parts: int = 0
    """Parts that were taken out of the queue and run."""
    queue_seconds: float = 0.0
    """Sum over ``parts`` of the time between arrival and run."""
    runs: int = 0
    compute_seconds: float = 0.0
    """Sum over ``runs``."""
    rows: int = 0
    """Sum over ``runs`` of the rows of the batch (models without a batch axis: one each)."""
    batch_sizes: Counter[int] = field(default_factory=Counter)
    """How many runs had this many rows."""
    queued: int = 0
    """Parts waiting now."""
    running: int = 0
    """Runs in progress now."""

    def copy(self) -> ModelStatistics:
        """A snapshot that no longer changes."""
        values = dict(self.__dict__)
        values["batch_sizes"] = Counter(self.batch_sizes)
        return ModelStatistics(**values)


@dataclass
class TransportStatistics:
    """Counters of an engine that sends its calls to a server."""

    shared_memory: bool = False
    """Whether large inputs go through shared memory now."""
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By model and outcome: ``ok``, ``cancelled``, or the error's problem type."""
    sent_bytes: Counter[str] = field(default_factory=Counter)
    """Inputs by way: ``grpc`` or ``shared_memory``."""
    retries: int = 0
    """Calls that found no connection and were sent again."""
