"""The verdict on overload: each promise that is broken makes the command fail."""

from __future__ import annotations

from typing import Any

import pytest

from loadtest.arrivals import Arrivals
from loadtest.overload import Answers, Round, judge, summarize


def measured(**changes: Any) -> list[str]:
    """Names of the limits that one round does not keep: all kept, but for the changes."""
    answers = Answers(accepted=[0.5] * 90, refused=[0.01] * 900, retry_after=[2.0] * 900)
    answers.statuses.update({200: 90, 429: 900})
    goodput = changes.pop("goodput", 9.5)
    answers.statuses.update(changes.pop("statuses", {}))
    for name, value in changes.items():
        setattr(answers, name, value)
    summary = summarize([Round(10.0, goodput, 100.0, answers, Arrivals(0.0, 10.0, [0.001]), 0.001, 0.1)], 8)
    verdict = judge(summary, "a title", most_refusal_ms=20, least_goodput=0.9, deadline=30)
    return [broken.partition(":")[0] for broken in verdict.broken]


def test_all_that_was_promised_is_well() -> None:
    assert measured() == []


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({"refused": [0.03] * 900}, "429s, p95"),
        ({"refused": [], "retry_after": []}, "429s, p95"),
        ({"statuses": {503: 1}}, "5xx"),
        ({"goodput": 8.0}, "goodput over peak, median"),
        ({"accepted": [31.0] * 90}, "accepted, p99"),
        ({"accepted": []}, "accepted, p99"),
        ({"wrong": ["a picture: other people"]}, "wrong or lost answers"),
    ],
)
def test_each_broken_promise_is_told(changes: dict[str, Any], broken: str) -> None:
    """A run in which nothing was refused is one of them: it was no overload, and shows nothing."""
    assert measured(**changes) == [broken]
