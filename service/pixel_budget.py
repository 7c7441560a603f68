"""A bound on decoded pixels, shared by all requests: memory stays flat when many send large photographs."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import AbstractAsyncContextManager


class PixelBudget:
    """A semaphore that counts pixels, first come first served.

    A pixel is 3 bytes that stay and as many again while a decoder works; kinds of files that take more count as more
    pixels (:attr:`service.image_header.ImageHeader.cost`).

    A group that alone is larger than the budget is let in when nothing else is held, so nobody waits for ever.
    """

    def __init__(self, pixels: int) -> None:
        self._free = self._total = pixels
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def hold(self, pixels: int) -> AbstractAsyncContextManager[None]:
        """Wait until that many pixels may be decoded; they count until the block ends."""
        return _Hold(self, min(pixels, self._total))

    async def _take(self, pixels: int) -> None:
        if self._waiting or pixels > self._free:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append((pixels, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # let in and cancelled at once: give it back
                    self._give_back(pixels)
                else:
                    self._admit()
                raise
        else:
            self._free -= pixels

    def _give_back(self, pixels: int) -> None:
        self._free += pixels
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            pixels, turn = self._waiting[0]
            if turn.cancelled():
                self._waiting.popleft()
                continue
            if pixels > self._free:
                return
            self._waiting.popleft()
            self._free -= pixels
            turn.set_result(None)


class _Hold:
    """A block that has pixels of the budget. A class: see :class:`service.stages.Measured`."""

    __slots__ = ("_budget", "_pixels")

    def __init__(self, budget: PixelBudget, pixels: int) -> None:
        self._budget = budget
        self._pixels = pixels

    async def __aenter__(self) -> None:
        await self._budget._take(self._pixels)

    async def __aexit__(self, *error: object) -> None:
        self._budget._give_back(self._pixels)
