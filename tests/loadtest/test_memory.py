"""The check for leaks: it must find one that is there, and not cry wolf at a pool that fills once."""

from __future__ import annotations

import mmap
import os
import time

import numpy as np
import pytest

from loadtest.memory import MemoryWatch, growth, tree_mb

SECONDS = np.arange(0, 1800.0, 5)
NOISE = np.random.default_rng(0).normal(0, 2, len(SECONDS))


def test_flat_memory_does_not_grow() -> None:
    found = growth(SECONDS, 400 + NOISE)
    assert abs(found.mb) < 3
    assert found.minutes == pytest.approx(24, abs=0.1)  # 30 less a fifth


def test_a_leak_is_its_slope_times_the_time() -> None:
    found = growth(SECONDS, 400 + 3.0 * SECONDS / 60 + NOISE)
    assert found.slope == pytest.approx(3.0, rel=0.05)
    assert found.mb == pytest.approx(3.0 * 24, rel=0.05)


def test_the_start_and_a_spike_are_no_leak() -> None:
    start = np.where(SECONDS < 300, -150 * (1 - SECONDS / 300), 0)
    spike = np.where((SECONDS > 1700) & (SECONDS < 1720), 300, 0)
    found = growth(SECONDS, 400 + start + spike + NOISE)
    assert found.mb < 5
    assert found.peak > 690


def test_memory_that_rose_and_stays_is_seen() -> None:
    assert growth(SECONDS, 400 + np.where(SECONDS > 1200, 80, 0) + NOISE).mb > 70


def test_too_few_samples_are_no_verdict() -> None:
    with pytest.raises(ValueError, match="longer run"):
        growth([0, 1, 2], [1, 1, 1])


def test_memory_is_sampled() -> None:
    if tree_mb(os.getpid()) is None:
        pytest.skip("needs /proc")
    with MemoryWatch(os.getpid(), every=0.02) as watch:
        # Of its own: what the allocator holds from earlier tests is not taken again.
        with mmap.mmap(-1, 60_000_000) as kept:
            kept.write(b"x" * len(kept))
            time.sleep(0.1)
            size = len(kept)
    assert len(watch.mb) >= 2
    assert max(watch.mb) - watch.mb[0] > 0.8 * size / 1e6
