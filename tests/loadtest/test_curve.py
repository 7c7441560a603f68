"""Throughput and latency of a load: the plot and the table are made of these."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.curve import Row, plot, point, steps


def test_a_point_counts_right_answers_of_its_settled_part() -> None:
    # One request begins each tenth of a second and takes 50 ms; of five one fails, of ten one is refused.
    rows: list[Row] = [
        (0.1 * k, 50.0, "wrong" if k % 5 == 0 else "refused" if k % 10 == 1 else "right") for k in range(100)
    ]
    found = point("x", 3, rows, start=0.0, seconds=10.0)
    # From 2 s on: those begun at 2.0 to 9.9 s, 80 of them.
    assert (found.rate, found.failed, found.refused) == (pytest.approx(56 / 8), 16, 8)
    assert (found.p50, found.p95, found.p99) == (50.0, 50.0, 50.0)


def test_latencies_are_percentiles_and_an_empty_load_has_none() -> None:
    rows: list[Row] = [(0.01 * k, float(k), "right") for k in range(101)]
    found = point("x", 1, rows, start=-100.0, seconds=200.0)
    assert (found.p50, found.p95, found.p99) == (50.0, 95.0, 99.0)
    empty = point("x", 1, rows, start=50.0, seconds=10.0)
    assert (empty.rate, empty.p50) == (0.0, None)


def test_steps_are_cut_by_time(tmp_path: Path) -> None:
    rows: list[Row] = [(0.05 + 0.1 * k, 1.0, "right") for k in range(100)]
    rows += [(10.005 + 0.01 * k, 9.0, "right") for k in range(1000)]
    one, two = steps(rows, [1, 4], 10.0)
    assert (one.load, one.rate, one.p50) == (1, pytest.approx(10, rel=0.05), 1.0)
    assert (two.load, two.rate, two.p50) == (4, pytest.approx(100, rel=0.05), 9.0)
    plot([one, two], [one], [tmp_path / "a" / "curve.png", tmp_path / "curve.svg"])
    assert (tmp_path / "a" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "curve.svg").read_text()
