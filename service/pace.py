"""How fast requests are worked off, learnt from those that were: the ground of Retry-After and of early refusals.

Work is counted in rows that the networks see: one for each picture (detector) and one for each person (pose); pixels
to decode count as rows too (:mod:`service.admission`).
"""

from __future__ import annotations

# Weight of the newest request in the running means.
_NEWEST = 0.1


class Pace:
    """Seconds for each row, and rows for each picture, as running means.

    Requests that run at the same time share the machine: of a second in which four run, each is charged a quarter.
    So the mean is what the whole service needs for a row, whether one request runs or eight.
    """

    def __init__(self) -> None:
        # Until the first requests have been measured: two people a picture, at the pace of a laptop.
        self._seconds, self._rows = 0.1, 3.0
        self.people_per_picture = 2.0
        # How long requests took over what was expected: mean, and mean distance from it.
        self._ratio, self._spread = 1.0, 0.1
        self._running = 0
        self._shared = 0.0  # seconds that a request which ran all the time would have been charged
        self._changed = 0.0

    @property
    def seconds_per_row(self) -> float:
        """What the service needs for one row."""
        return self._seconds / self._rows

    @property
    def mean_rows(self) -> float:
        """Rows of a request of which nothing is known yet."""
        return self._rows

    def begin(self, now: float) -> float:
        """A request starts to run; the mark goes to :meth:`end`. ``now`` is in seconds of any steady clock."""
        self._advance(now)
        self._running += 1
        return self._shared

    def end(self, now: float, mark: float, rows: float, answered: bool) -> None:
        """A request ends that was expected to have that many rows.

        One that was given up has taken at least so long: it counts where it shows that the pace is slower than
        thought. One that failed at once tells nothing.
        """
        self._advance(now)
        self._running -= 1
        seconds = self._shared - mark
        if answered or seconds > rows * self.seconds_per_row:
            self._seconds += _NEWEST * (seconds - self._seconds)
            self._rows += _NEWEST * (rows - self._rows)

    @property
    def safety(self) -> float:
        """What an expected time is to be multiplied by so that nearly every request keeps it.

        Mean and five times the spread of what came of earlier expectations (the retransmission timer of TCP, Jacobson
        1988, takes four): nobody knows how many people a picture holds, and what else the machine does. In
        simulated overload (docs/experiments.md) three left up to 5 % late, five less than 1 %, at full pace.
        """
        return max(1.0, self._ratio + 5 * self._spread)

    def took(self, expected: float, seconds: float) -> None:
        """Learn how good an expectation was, from a request that was answered or ran out of time."""
        ratio = min(seconds / max(expected, 1e-6), 10.0)
        self._spread += _NEWEST * (abs(ratio - self._ratio) - self._spread)
        self._ratio += _NEWEST * (ratio - self._ratio)

    def found(self, pictures: int, people: int) -> None:
        """Learn how many people there are in a picture."""
        self.people_per_picture += _NEWEST * (people / max(1, pictures) - self.people_per_picture)

    def _advance(self, now: float) -> None:
        if self._running:
            self._shared += (now - self._changed) / self._running
        self._changed = now
