"""Callers: told apart by key or address, each with his own rate."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from service import callers
from service.callers import Caller, Callers
from service.errors import RateLimited
from service.keys import Key, Limits, key_line, new_key
from service.settings import Settings
from tests.service.marked_people import Card, encode, paint
from tests.service.wire import serving

PHOTO = encode(paint([Card(20, 30, 60, 120)]))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_of_tokens_gives_the_rate_in_the_long_run() -> None:
    """Whoever sends as fast as he can gets his burst and then his rate, and is told when to come back."""
    clock = Clock()
    known = Callers(Settings(caller_rate=5, caller_burst=10), clock)
    served, refused = 0, 0
    for _ in range(1000):
        try:
            known.find(None, "1.2.3.4")
            served += 1
        except RateLimited as refusal:
            refused += 1
            assert refusal.reason == "rate"
            assert refusal.retry_after is not None
            assert 0 < refusal.retry_after <= 0.2
        clock.now += 0.01
    assert served == pytest.approx(10 + 5 * 10, abs=1)
    assert refused == 1000 - served
    known.find(None, "1.2.3.5")  # others are not concerned


def test_who_comes_back_when_told_is_served() -> None:
    clock = Clock()
    known = Callers(Settings(caller_rate=0.1), clock)
    known.find(None, "1.2.3.4")
    with pytest.raises(RateLimited) as caught:
        known.find(None, "1.2.3.4")
    assert caught.value.retry_after == pytest.approx(10)
    clock.now += caught.value.retry_after or 0
    known.find(None, "1.2.3.4")


def test_a_keys_own_limits_outweigh_the_settings() -> None:
    clock = Clock()
    known = Callers(Settings(caller_rate=1), clock)
    free = Key("free", b"1" * 32, Limits(rate=0))
    slow = Key("slow", b"2" * 32, Limits(rate=0.5, burst=2))
    for _ in range(50):
        known.find(free, "1.2.3.4")
    known.find(slow, "1.2.3.4")
    known.find(slow, "9.9.9.9")
    with pytest.raises(RateLimited, match=r"0\.5"):
        known.find(slow, "8.8.8.8")  # one key is one caller, wherever from


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1.2.3.4", "1.2.3.5", False),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:1.2.3.4", "1.2.3.4", True),
        ("::1", "::1", True),
        (None, "", True),
    ],
)
def test_addresses_are_told_apart_as_people_have_them(one: str | None, other: str | None, same: bool) -> None:
    known = Callers(Settings())
    assert (known.find(None, one) is known.find(None, other)) == same


def test_memory_stays_bounded_and_who_is_being_served_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "_REMEMBERED", 100)
    known = Callers(Settings())
    busy = known.find(None, "9.9.9.9")
    busy.held[0] = 1
    for n in range(5000):
        known.find(None, f"10.0.{n // 250}.{n % 250}")
    assert len(known._known) <= 101
    assert known.find(None, "9.9.9.9") is busy


def test_a_limit_that_is_set_later_counts_from_then_on() -> None:
    caller = Caller("somebody", 0.0)
    for n in range(10):
        caller.take_token(float(n))
    caller.limit(rate=1, burst=0, concurrency=0)
    caller.take_token(10.0)
    with pytest.raises(RateLimited):
        caller.take_token(10.0)


async def test_rates_over_http(tmp_path: Path) -> None:
    key, other, file = new_key(), new_key(), tmp_path / "keys"
    lines = [key_line("slow", key, Limits(rate=0.01, burst=2)), key_line("quick", other)]
    file.write_text("\n".join(lines), encoding="utf-8")
    async with serving(Settings(cpu_threads=1, api_keys_file=file)) as (_, port):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:

            async def post(key: str) -> httpx.Response:
                return await client.post("/v1/pose", files={"image": PHOTO}, headers={"X-API-Key": key})

            answers = [await post(key) for _ in range(3)]
            assert [answer.status_code for answer in answers] == [200, 200, 429]
            assert answers[2].json()["type"] == "/problems/rate-limited"
            assert 90 <= int(answers[2].headers["retry-after"]) <= 100
            assert (await post(other)).status_code == 200
            text = (await client.get("/metrics")).text
            assert 'tritonpose_rejected_total{reason="rate"} 1.0' in text
