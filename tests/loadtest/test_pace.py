"""Rates: the bench's ratio is a quotient of two of them."""

from __future__ import annotations

import time

import numpy as np
import pytest

from loadtest.pace import Round, rate


def test_evenly_spaced_completions_have_their_rate_wherever_the_round_is_cut() -> None:
    assert rate([10.0, 10.5, 11.0, 11.5], workers=1) == pytest.approx(2.0)
    assert rate([11.5, 10.5, 10.0, 11.0], workers=1) == pytest.approx(2.0), "threads note them in any order"


@pytest.mark.parametrize("workers", [1, 2, 4, 7])
def test_workers_that_finish_alone_at_the_end_do_not_change_the_rate(workers: int) -> None:
    """Closed loop of equal pieces on a machine that completes 10 a second, whoever shares it."""
    steady = np.arange(40) / 10
    # After the end the last pieces share the machine with ever fewer others; they still end one by one.
    tail = steady[-1] + np.cumsum(np.linspace(0.3, 0.1, workers - 1)) if workers > 1 else np.zeros(0)
    assert rate([*steady, *tail], workers) == pytest.approx(10.0)


def test_too_little_to_tell_is_no_rate() -> None:
    assert rate([], 1) == rate([1.0], 1) == rate([1.0, 1.0], 1) == rate([1.0, 2.0, 3.0], 3) == 0.0


def test_a_slow_machine_gets_more_time_but_not_for_ever() -> None:
    slow = Round(0.05, workers=1, lead_in=0.0)
    time.sleep(0.06)
    assert slow.goes_on(), "nothing is completed yet"
    for _ in range(3):
        slow.completed()
    assert not slow.goes_on()
    stuck = Round(0.01, workers=1, lead_in=0.0)
    time.sleep(0.06)
    assert not stuck.goes_on()


def test_what_ends_in_the_lead_in_does_not_count() -> None:
    early = Round(0.1, workers=1, lead_in=10.0)
    assert early.goes_on()
    assert not early.completed()
    assert early.moments == []
