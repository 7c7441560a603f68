"""How long a round lasts, and the rate of what was completed in it."""

from __future__ import annotations

import time
from collections.abc import Sequence

# A slow machine gets more time than asked for, until a rate can be told from this many completions for each worker.
_LEAST_EACH = 3
_LONGEST = 5.0


class Round:
    """The clock of a round: a lead-in, then ``seconds``, longer when too little was completed, up to five times."""

    def __init__(self, seconds: float, workers: int, lead_in: float) -> None:
        """Starts now. ``workers`` complete things at the same time; what ends in the lead-in does not count."""
        self.start = time.perf_counter() + lead_in
        self._seconds = seconds
        self._least = _LEAST_EACH * workers
        self.moments: list[float] = []

    def goes_on(self) -> bool:
        """Whether a worker is to begin another piece."""
        passed = time.perf_counter() - self.start
        if passed < self._seconds:
            return True
        return passed < _LONGEST * self._seconds and len(self.moments) < self._least

    def completed(self) -> bool:
        """Note that a piece is done; False in the lead-in."""
        now = time.perf_counter()
        if now < self.start:
            return False
        self.moments.append(now)
        return True


def rate(moments: Sequence[float], workers: int) -> float:
    """Completions a second: the gaps between them, so that neither end of a round cuts a piece in two.

    The last ``workers - 1`` are left out: they end while others have stopped. 0 when there are too few to tell.
    """
    ordered = sorted(moments)[: len(moments) - (workers - 1)]
    if len(ordered) < 2 or ordered[-1] <= ordered[0]:
        return 0.0
    return (len(ordered) - 1) / (ordered[-1] - ordered[0])
