"""Which sample comes when, and the random numbers of its augmentation: functions of (seed, draw, index) alone.

A counter-based generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): nothing is carried from
one draw to the next, so a resumed run, another number of processes and another order give the same crops. A generator
object for each sample would do as well and takes ten times as long.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# Draws of the stream are made in blocks of this length, so that it does not matter where a run was resumed.
_BLOCK = 1 << 14
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele et al. 2014): every bit of the input changes half the bits given back."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniforms(
    seed: int, draws: npt.NDArray[np.int64], indices: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.float64]:
    """``count`` numbers in [0, 1) for each pair of draw and index.

    Args:
        seed: of the run.
        draws: [P], place in the run's stream.
        indices: [P], the sample that is drawn there.
        count: numbers for each.

    Returns:
        float64 [P, count].
    """
    key = np.full(len(draws), seed % 2**64, np.uint64)
    for part in (draws, indices):
        key = _mixed((key + _GOLDEN) ^ _mixed(np.asarray(part, np.int64).astype(np.uint64) + _GOLDEN))
    counters = (np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)[None]
    # 53 bits are what a float64 holds.
    return (_mixed(key[:, None] + counters) >> np.uint64(11)) * 2.0**-53


class SampleStream:
    """Endless, seeded stream of sample numbers, each drawn in proportion to its repeat."""

    def __init__(self, repeats: Sequence[float], seed: int) -> None:
        share = np.asarray(repeats, np.float64)
        if not len(share) or not np.isfinite(share).all() or (share < 0).any() or share.sum() == 0:
            raise ValueError("repeats must be finite, not negative, and not all zero")
        self.share, self.seed = share / share.sum(), seed
        self._block: tuple[int, npt.NDArray[np.int64]] = (-1, np.zeros(0, np.int64))

    def take(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """int64 [count]: the samples of draws ``start`` to ``start + count``, the same whatever was taken before."""
        parts = []
        at = start
        while at < start + count:
            number, offset = divmod(at, _BLOCK)
            part = self._drawn(number)[offset : offset + start + count - at]
            parts.append(part)
            at += len(part)
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def _drawn(self, number: int) -> npt.NDArray[np.int64]:
        if self._block[0] != number:
            generator = np.random.default_rng((self.seed, 7, number))
            self._block = (number, generator.choice(len(self.share), _BLOCK, p=self.share).astype(np.int64))
        return self._block[1]
