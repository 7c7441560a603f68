"""Overload over HTTP: who is refused, who waits, and that nobody's work goes on who is no longer there."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from service.admission import Admission
from service.engines.fake import FakeEngine
from service.errors import Overloaded
from service.keys import key_line, new_key
from service.settings import Settings
from tests.service.marked_people import Card, card_engine, encode, paint
from tests.service.wire import serving

PHOTO = encode(paint([Card(20, 30, 60, 120)]))
POST = (
    b"POST /v1/pose HTTP/1.1\r\nHost: pose\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(PHOTO)
) + PHOTO
SETTINGS = Settings(cpu_threads=1, max_running=1, max_waiting=20)


@pytest.fixture
def engine() -> FakeEngine:
    return card_engine()


@pytest.fixture
async def service(engine: FakeEngine) -> AsyncIterator[tuple[Admission, httpx.AsyncClient, int]]:
    async with serving(SETTINGS, engine) as (app, port):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            engine.calls.clear()
            yield app.state.service.admission, client, port


def post(client: httpx.AsyncClient, **headers: str) -> asyncio.Future[httpx.Response]:
    return asyncio.ensure_future(client.post("/v1/pose", files={"image": PHOTO}, headers=headers))


async def until(condition: object) -> None:
    assert callable(condition)
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


async def test_who_hangs_up_while_waiting_leaves_at_once_and_never_reaches_the_engine(
    service: tuple[Admission, httpx.AsyncClient, int], engine: FakeEngine
) -> None:
    admission, client, port = service
    engine.delay = 0.5
    first = post(client)
    await until(lambda: admission.running == 1)
    gone = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
    for _, writer in gone:
        writer.write(POST)
    await until(lambda: len(admission._queue) == 5)
    last = post(client)
    await until(lambda: len(admission._queue) == 6)
    for _, writer in gone:
        writer.transport.abort()
    await until(lambda: len(admission._queue) == 1)
    assert not first.done(), "they left while the first was still running"
    engine.delay = 0.0
    assert [(await answer).status_code for answer in (first, last)] == [200, 200]
    assert [call.model for call in engine.calls] == ["person_detector", "pose"] * 2
    assert admission.held == [0, 0, 0, 0]


async def test_a_deadline_that_passes_while_waiting_ends_the_wait(
    service: tuple[Admission, httpx.AsyncClient, int], engine: FakeEngine
) -> None:
    admission, client, _ = service
    admission.pace._seconds = 0.001  # it believes itself quick, and lets everybody in
    engine.delay = 1.0
    first = post(client)
    await until(lambda: admission.running == 1)
    started = time.monotonic()
    late = await post(client, **{"X-Request-Timeout": "0.3"})
    assert late.status_code == 504
    assert "within 0.3 s" in late.json()["detail"]
    assert time.monotonic() - started < 1.5
    assert len(admission._queue) == 0
    assert (await first).status_code == 200
    assert len(engine.calls) == 2


async def test_a_deadline_that_the_queue_cannot_keep_is_refused_at_once(
    service: tuple[Admission, httpx.AsyncClient, int], engine: FakeEngine
) -> None:
    admission, client, _ = service
    engine.delay = 0.5
    assert (await post(client)).status_code == 200
    admission.pace._seconds = admission.pace._rows  # a second for each row
    first = post(client)
    await until(lambda: admission.running == 1)
    refused = await post(client, **{"X-Request-Timeout": "1.5"})
    assert refused.status_code == 429
    assert not first.done()
    assert int(refused.headers["retry-after"]) >= 1
    assert re.search(r"within the 1\.[0-5]\d s left", refused.json()["detail"])
    bad = await post(client, **{"X-Request-Timeout": "soon"})
    assert bad.status_code == 422
    assert "'soon'" in bad.json()["detail"]
    assert (await first).status_code == 200
    text = (await client.get("/metrics")).text
    assert 'tritonpose_rejected_total{reason="queue-deadline"} 1.0' in text


async def test_a_full_queue_of_a_network_says_when_to_come_back(
    service: tuple[Admission, httpx.AsyncClient, int], engine: FakeEngine
) -> None:
    """As the service's own queue does, by the work ahead, and not always in a second."""
    admission, client, _ = service
    engine.failures["pose"] = Overloaded("model 'pose': 128 requests wait already")
    admission.pace._seconds = 7 * admission.pace._rows
    refused = await post(client)
    assert refused.status_code == 429 and refused.json()["type"] == "/problems/overloaded"
    assert 7 <= int(refused.headers["retry-after"]) <= 60


async def test_a_refusal_does_not_wait_for_the_body(
    service: tuple[Admission, httpx.AsyncClient, int], engine: FakeEngine
) -> None:
    admission, client, port = service
    engine.delay = 60
    waiting = [post(client) for _ in range(21)]
    await until(lambda: admission.admitted == 21)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(POST[:200])  # the rest of the picture never comes
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    assert b" 429 " in head
    assert b"retry-after" in head.lower()
    writer.close()
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await until(lambda: admission.admitted == 0)


async def test_a_greedy_key_does_not_starve_another(tmp_path: Path, engine: FakeEngine) -> None:
    greedy, modest, file = new_key(), new_key(), tmp_path / "keys"
    file.write_text(f"{key_line('greedy', greedy)}\n{key_line('modest', modest)}\n", encoding="utf-8")
    async with serving(SETTINGS.model_copy(update={"api_keys_file": file}), engine) as (app, port):
        admission = app.state.service.admission
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, limits=limits) as client:
            engine.delay = 0.02
            flood = [post(client, **{"X-API-Key": greedy}) for _ in range(60)]
            await until(lambda: admission.admitted == 21)
            for _ in range(3):
                answer = await post(client, **{"X-API-Key": modest})
                assert answer.status_code == 200, "one of the other's gives way"
            statuses = [(await one).status_code for one in flood]
            assert set(statuses) == {200, 429}
            text = (await client.get("/metrics")).text
            assert 'tritonpose_rejected_total{reason="queue-share"} 0.0' not in text
    assert admission.held == [0, 0, 0, 0]
