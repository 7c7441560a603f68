"""The fair queue: a caller who sends much waits behind himself, and nobody else does."""

from __future__ import annotations

import random

from service.fair_queue import FairQueue


def drain(queue: FairQueue[str, str]) -> list[str]:
    taken = []
    while (item := queue.take()) is not None:
        taken.append(item)
    return taken


def test_one_caller_is_served_in_the_order_of_arrival() -> None:
    queue: FairQueue[str, str] = FairQueue()
    for n in range(5):
        queue.put("a", f"a{n}", 1)
    assert drain(queue) == ["a0", "a1", "a2", "a3", "a4"]
    assert queue.take() is None


def test_callers_take_turns_whatever_they_have_sent() -> None:
    queue: FairQueue[str, str] = FairQueue()
    for n in range(50):
        queue.put("greedy", f"g{n}", 1)
    assert [queue.take() for _ in range(10)] == [f"g{n}" for n in range(10)]
    for n in range(3):
        queue.put("late", f"l{n}", 1)
    assert drain(queue)[:6] in (["g10", "l0", "g11", "l1", "g12", "l2"], ["l0", "g10", "l1", "g11", "l2", "g12"])


def test_large_requests_take_fewer_turns() -> None:
    """Of the work that is done, each has half: ten pictures of the one for each ten of the other."""
    queue: FairQueue[str, str] = FairQueue()
    for n in range(20):
        queue.put("large", f"L{n}", 10)
    for n in range(200):
        queue.put("small", f"s{n}", 1)
    first = [queue.take() for _ in range(110)]
    assert abs(sum(str(item).startswith("L") for item in first) - 10) <= 1


def test_who_was_away_gets_no_credit_for_it() -> None:
    queue: FairQueue[str, str] = FairQueue()
    for n in range(100):
        queue.put("busy", f"b{n}", 1)
    for _ in range(60):
        queue.take()
    for n in range(60):
        queue.put("new", f"n{n}", 1)
    assert sum(str(queue.take()).startswith("n") for _ in range(20)) in (9, 10, 11)


def test_removed_items_are_not_served_and_do_not_count() -> None:
    queue: FairQueue[str, str] = FairQueue()
    for n in range(3):
        queue.put("a", f"a{n}", 1)
    assert queue.remove("a", "a1")
    assert not queue.remove("a", "a1")
    assert not queue.remove("b", "a0")
    assert len(queue) == 2
    assert drain(queue) == ["a0", "a2"]
    assert len(queue) == 0


def test_the_work_ahead_is_what_is_really_served_before() -> None:
    """Against the queue itself, with lines and sizes at random: right to one turn of each other caller."""
    draw = random.Random(7)
    for _ in range(200):
        queue: FairQueue[str, tuple[str, int, int]] = FairQueue()
        largest = 0
        for n in range(draw.randrange(1, 60)):
            caller, work = draw.choice("abcd"), draw.randrange(1, 6)
            largest = max(largest, work)
            queue.put(caller, (caller, n, work), work)
        expected = queue.ahead("a")
        mine = ("a", -1, 3)
        queue.put("a", mine, 3)
        served = 0
        while (item := queue.take()) != mine:
            assert item is not None
            served += item[2]
        assert abs(served - expected) <= 3 * largest


def test_memory_stays_bounded_with_callers_who_come_once() -> None:
    queue: FairQueue[int, int] = FairQueue()
    queue.put(-1, -1, 1e9)
    for caller in range(20_000):
        queue.put(caller, caller, 1)
        queue.take()
    assert len(queue._given) < 3000
