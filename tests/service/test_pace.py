"""The pace: what the service needs for a row, whatever runs beside it."""

from __future__ import annotations

import pytest

from service.pace import Pace


@pytest.mark.parametrize("beside", [1, 2, 8])
def test_the_pace_is_the_services_however_many_run(beside: int) -> None:
    """A machine that does 20 rows a second does so with one request running or with eight."""
    pace, now = Pace(), 100.0
    for _ in range(60):
        marks = [pace.begin(now) for _ in range(beside)]
        now += beside * 4 / 20
        for mark in marks:
            pace.end(now, mark, rows=4, answered=True)
    assert pace.seconds_per_row == pytest.approx(1 / 20, rel=0.02)
    assert pace.mean_rows == pytest.approx(4, rel=0.02)


def test_requests_that_overlap_in_part_share_what_they_share() -> None:
    pace = Pace()
    first = pace.begin(0.0)
    second = pace.begin(1.0)  # alone for a second, then two for two seconds
    pace.end(3.0, first, rows=1, answered=True)
    assert pace._shared - second == pytest.approx(1.0)
    assert pace._shared - first == pytest.approx(2.0)


def test_failures_do_not_make_it_faster_but_late_ones_make_it_slower() -> None:
    pace = Pace()
    before = pace.seconds_per_row
    for _ in range(50):
        pace.end(0.001, pace.begin(0.0), rows=3, answered=False)
    assert pace.seconds_per_row == before
    for n in range(50):
        pace.end(10.0 * n + 9.0, pace.begin(10.0 * n), rows=3, answered=False)
    assert pace.seconds_per_row > 2.5


def test_people_of_a_picture_are_learnt() -> None:
    pace = Pace()
    for _ in range(100):
        pace.found(pictures=2, people=14)
    assert pace.people_per_picture == pytest.approx(7, rel=0.01)


def test_expectations_that_fail_are_made_safer_and_those_that_hold_are_trusted() -> None:
    pace = Pace()
    for _ in range(100):
        pace.took(expected=1.0, seconds=1.0)
    assert pace.safety == pytest.approx(1.0, abs=0.01)
    for n in range(200):
        pace.took(expected=1.0, seconds=0.5 + n % 2 * 1.5)  # half of them take twice as long
    assert pace.safety > 2.0
    pace.took(expected=0.0, seconds=5.0)
    assert pace.safety < 60, "one that came to nothing does not close the service"
