"""HTTP when the service cannot or must not answer: no engine, no memory, full, late, without a key, hung up."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service import routes
from service.app import create_app
from service.engines.fake import FakeEngine
from service.errors import InferenceFailed
from service.settings import Settings
from tests.service.answers import JPEG, PHOTO, check_people, parsed, problem, raw
from tests.service.marked_people import card_engine

ALPHA, BETA = "a-key-of-32-characters-and-more--1", "a-key-of-32-characters-and-more--2"


async def test_an_engine_that_is_gone_is_503_until_it_is_back(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.available = False
    lost = await client.post("/v1/pose", files={"image": PHOTO})
    problem(lost, 503, "engine-unavailable")
    assert int(lost.headers["retry-after"]) >= 1
    problem(await client.get("/v1/health/ready"), 503, "engine-unavailable")
    assert parsed(await client.get("/v1/health/live"))["status"] == "live"
    engine.available = True
    check_people(parsed(await client.post("/v1/pose", files={"image": PHOTO})))
    parsed(await client.get("/v1/health/ready"))


async def test_failures_and_surprises_of_models_are_500(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.failures["pose"] = InferenceFailed("out of memory")
    problem(await client.post("/v1/pose", files={"image": PHOTO}), 500, "inference-failed")
    engine.failures["pose"] = RuntimeError("a secret detail of the inside")
    surprise = problem(await client.post("/v1/pose", files={"image": PHOTO}), 500, "internal")
    assert "secret" not in json.dumps(surprise)
    engine.failures.clear()
    check_people(parsed(await client.post("/v1/pose", files={"image": PHOTO})))


async def test_too_little_memory_is_503_and_passes(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("service.images.decode", decode)
        short = await client.post("/v1/pose", files={"image": PHOTO})
        problem(short, 503, "out-of-memory")
        assert int(short.headers["retry-after"]) >= 1
    check_people(parsed(await client.post("/v1/pose", files={"image": PHOTO})))
    assert 'tritonpose_rejected_total{reason="out-of-memory"} 1.0' in (await client.get("/metrics")).text


async def test_parsing_a_large_body_ends_with_the_deadline(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def parse(*_: object) -> None:
        released.wait(10)

    monkeypatch.setattr(routes, "_parse", parse)
    started = time.perf_counter()
    headers = {"Content-Type": "image/png", "X-Request-Timeout": "0.2"}
    late = await client.post("/v1/pose", content=PHOTO + bytes(300_000), headers=headers)
    released.set()
    assert "0.2 s" in problem(late, 504, "deadline-exceeded")["detail"]
    assert time.perf_counter() - started < 8


async def test_before_the_models_are_loaded_it_lives_but_is_not_ready(engine: FakeEngine) -> None:
    engine.available = False
    app = create_app(Settings(cpu_threads=1), engine)
    async with app.router.lifespan_context(app), connect(app) as client:
        assert (await client.get("/v1/health/live")).status_code == 200
        problem(await client.get("/v1/health/ready"), 503, "engine-unavailable")
        early = await client.post("/v1/pose", files={"image": PHOTO})
        problem(early, 503, "engine-unavailable")
        assert "retry-after" in early.headers
        engine.available = True
        await asyncio.wait_for(app.state.service.readiness.wait(), 10)
        assert (await client.get("/v1/health/ready")).status_code == 200
        app.state.service.readiness.drain()
        assert "shutting down" in problem(await client.get("/v1/health/ready"), 503, "engine-unavailable")["detail"]
        assert (await client.post("/v1/pose", files={"image": PHOTO})).status_code == 200


def connect(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://pose")


async def test_a_full_queue_is_429_and_a_slow_answer_504() -> None:
    engine = card_engine()
    app = create_app(Settings(cpu_threads=1, max_running=1, max_waiting=2, deadline_seconds=2), engine)
    async with app.router.lifespan_context(app), connect(app) as client:
        await asyncio.wait_for(app.state.service.readiness.wait(), 20)
        engine.delay = 0.03
        posts = [client.post("/v1/pose", files={"image": PHOTO}) for _ in range(9)]
        answers = await asyncio.gather(*posts)
        refused = [answer for answer in answers if answer.status_code == 429]
        assert len(refused) == 6
        for answer in refused:
            problem(answer, 429, "overloaded")
            assert int(answer.headers["retry-after"]) >= 1
        assert sum(answer.status_code == 200 for answer in answers) == 3
        engine.delay = 30
        started = time.perf_counter()
        problem(await client.post("/v1/pose", files={"image": PHOTO}), 504, "deadline-exceeded")
        assert time.perf_counter() - started < 4
        engine.delay = 0
        check_people(parsed(await client.post("/v1/pose", files={"image": PHOTO})))
        admission = app.state.service.admission
        assert (admission.admitted, admission.running) == (0, 0)


async def test_engine_calls_get_what_is_left_of_the_deadline() -> None:
    """A network that nobody waits for any more would take the place of one that somebody waits for."""
    engine = card_engine()
    app = create_app(Settings(cpu_threads=1, deadline_seconds=9), engine)
    async with app.router.lifespan_context(app), connect(app) as client:
        await asyncio.wait_for(app.state.service.readiness.wait(), 20)
        engine.calls.clear()
        engine.delay = 0.05
        check_people(parsed(await client.post("/v1/pose", files={"image": PHOTO})))
    detector, pose = [call.timeout for call in engine.calls]
    assert detector is not None
    assert pose is not None
    assert 8 < detector <= 9
    assert 7 < pose <= detector - 0.05


async def test_a_body_that_nobody_could_answer_need_not_travel(
    app: FastAPI, client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.unavailable = "Triton at localhost:8001 does not answer"
    travelled = []

    async def body() -> AsyncIterator[bytes]:
        travelled.append(True)
        yield PHOTO

    answer = await client.post("/v1/pose", content=body(), headers={"Content-Type": "image/jpeg"})
    assert "localhost:8001" in problem(answer, 503, "engine-unavailable")["detail"]
    assert not travelled
    problem(await client.get("/v1/health/ready"), 503, "engine-unavailable")
    metrics = (await client.get("/metrics")).text
    assert "tritonpose_ready 0.0" in metrics
    assert "tritonpose_engine_up 0.0" in metrics
    engine.unavailable = None
    check_people(parsed(await client.post("/v1/pose", files={"image": PHOTO})))
    await asyncio.sleep(1)  # a scrape may show what was a second ago
    assert "tritonpose_ready 1.0" in (await client.get("/metrics")).text


async def test_keys_guard_the_models_and_leave_health_open() -> None:
    app = create_app(Settings(cpu_threads=1, api_keys=f"{ALPHA}, {BETA}"), card_engine())
    async with app.router.lifespan_context(app), connect(app) as client:
        await asyncio.wait_for(app.state.service.readiness.wait(), 20)
        refused = await client.post("/v1/pose", files={"image": PHOTO})
        problem(refused, 401, "unauthorized")
        assert refused.headers["www-authenticate"] == "Bearer"
        for headers in ({"X-API-Key": "gamma"}, {"Authorization": "Bearer alph"}, {"X-API-Key": "ä".encode("latin-1")}):
            problem(await client.get("/v1/models", headers=headers), 403, "forbidden")
        for headers in ({"X-API-Key": BETA}, {"Authorization": f"bearer {ALPHA}"}):
            check_people(parsed(await client.post("/v1/pose", files={"image": PHOTO}, headers=headers)))
        for path in ("/", "/v1/health/live", "/v1/health/ready", "/metrics"):
            assert (await client.get(path)).status_code == 200


async def test_every_operation_that_is_said_to_need_a_key_does() -> None:
    app = create_app(Settings(cpu_threads=1, api_keys=ALPHA), card_engine())
    async with app.router.lifespan_context(app), connect(app) as client:
        await asyncio.wait_for(app.state.service.readiness.wait(), 20)
        guarded = set()
        for path, operations in parsed(await client.get("/openapi.json"))["paths"].items():
            for method, operation in operations.items():
                answer = await client.request(method, path.replace("{name}", "pose"))
                if "security" in operation:
                    guarded.add((method, path))
                    problem(answer, 401, "unauthorized")
                else:
                    assert answer.status_code == 200
        assert {("post", "/v1/pose"), ("get", "/v1/models"), ("get", "/v1/models/{name}")} == guarded


async def test_limits_on_bytes_hold_whatever_the_header_says() -> None:
    app = create_app(Settings(cpu_threads=1, max_body_bytes=150_000, max_image_bytes=100_000), card_engine())
    async with app.router.lifespan_context(app), connect(app) as client:
        await asyncio.wait_for(app.state.service.readiness.wait(), 20)
        problem(await client.post(**raw(b"x" * 150_001)), 413, "too-large")
        problem(await client.post(**raw(b"x" * 100_001)), 413, "too-large")

        async def endless() -> Any:
            while True:
                yield b"x" * 1000

        streamed = await client.post("/v1/pose", content=endless(), headers={"Content-Type": "image/jpeg"})
        problem(streamed, 413, "too-large")


async def test_a_caller_who_hangs_up_frees_his_place(app: FastAPI, engine: FakeEngine) -> None:
    """Under load, callers time out and go: their work must not go on behind their back."""
    engine.delay = 30
    messages = [{"type": "http.request", "body": JPEG, "more_body": False}]
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        """Nobody reads it."""

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/v1/pose", "raw_path": b"/v1/pose", "query_string": b"", "root_path": "",
        "headers": [(b"content-type", b"image/jpeg")], "client": ("1.2.3.4", 5), "server": ("pose", 80),
    }  # fmt: skip
    request = asyncio.ensure_future(app(scope, receive, send))
    admission = app.state.service.admission
    while not admission.running:
        assert not request.done()
        await asyncio.sleep(0.005)
    gone.set()
    await asyncio.wait_for(request, 2)
    assert (admission.admitted, admission.running) == (0, 0)
