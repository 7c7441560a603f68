"""A queue that serves callers in turn, so that nobody waits behind all that one greedy caller has sent.

Start-time fair queueing (Goyal, Vin, Cheng 1996): each caller has a line of its own, and the line that has been given
least work is served next. With requests of one size that is round-robin; somebody who sends a hundred pictures in one
request waits a hundred turns for the next. A caller who was away gets no credit for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)
Caller = TypeVar("Caller", bound=Hashable)

# Callers who do not wait and whose work is remembered; when they are more, all of these are forgotten.
_REMEMBERED = 1024


class FairQueue(Generic[Caller, Item]):
    """Lines of items with their work. All operations take a time that grows with the number of lines at most."""

    def __init__(self) -> None:
        self._lines: dict[Caller, deque[tuple[Item, float]]] = {}
        self._work: dict[Caller, float] = {}  # of each line: the sum
        # Work given to each caller so far, on a common scale: `_clock` is where the caller served last began.
        self._given: dict[Caller, float] = {}
        self._clock = 0.0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def put(self, caller: Caller, item: Item, work: float) -> None:
        """Append an item that will take that much work to its caller's line."""
        line = self._lines.get(caller)
        if line is None:
            line = self._lines[caller] = deque()
            self._work[caller] = 0.0
            self._given[caller] = max(self._clock, self._given.get(caller, 0.0))
        line.append((item, work))
        self._work[caller] += work
        self._length += 1

    def take(self) -> Item | None:
        """Remove and return the next item; None when nothing waits."""
        if not self._lines:
            return None
        caller = min(self._lines, key=self._given.__getitem__)
        item, work = self._lines[caller].popleft()
        self._clock = self._given[caller]
        self._given[caller] += work
        self._left(caller, work)
        return item

    def remove(self, caller: Caller, item: Item) -> bool:
        """Take an item out of its caller's line. False when it is not there."""
        line = self._lines.get(caller, deque())
        for entry in line:
            if entry[0] == item:
                line.remove(entry)
                self._left(caller, entry[1])
                return True
        return False

    def ahead(self, caller: Caller) -> float:
        """Work that is served before an item which this caller would append now."""
        own = self._work.get(caller, 0.0)
        # Each other line is given about as much as this one before its last item's turn comes, and one turn more.
        ahead = own
        for other, line in self._lines.items():
            if other != caller:
                ahead += min(self._work[other], own + line[0][1])
        return ahead

    def _left(self, caller: Caller, work: float) -> None:
        self._length -= 1
        self._work[caller] -= work
        if not self._lines[caller]:
            del self._lines[caller], self._work[caller]
            if not self._lines:
                self._given.clear()
                self._clock = 0.0
            elif len(self._given) > len(self._lines) + _REMEMBERED:
                self._given = {one: self._given[one] for one in self._lines}
