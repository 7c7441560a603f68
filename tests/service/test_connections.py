"""Connections: slow, endless and silent callers, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from service import connections
from service.connections import MAX_HEAD_BYTES, MAX_HEADERS
from service.settings import Settings
from tests.service.marked_people import Card, encode, paint
from tests.service.wire import serving, talk

PHOTO = encode(paint([Card(20, 30, 60, 120)]))
SETTINGS = Settings(cpu_threads=1, head_seconds=0.5, body_seconds=0.5, max_connections=8)
GET = b"GET /v1/health/live HTTP/1.1\r\nHost: pose\r\n"


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async with serving(SETTINGS) as (_, opened):
        yield opened


def problem_type(answer: bytes) -> str:
    head, _, body = answer.partition(b"\r\n\r\n")
    document = json.loads(body)
    assert f"HTTP/1.1 {document['status']} ".encode() in head
    assert b"application/problem+json" in head
    assert b"connection: close" in head.lower()
    return str(document["type"])


async def is_well(port: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        assert (await client.get("/v1/health/live")).status_code == 200


async def test_a_head_without_end_is_refused(port: int) -> None:
    for data in (
        b"GET /" + b"x" * 2 * MAX_HEAD_BYTES,  # one line that never ends
        GET + b"X-Long: " + b"x" * 2 * MAX_HEAD_BYTES + b"\r\n\r\n",
        b"GET /v1/health/live?" + b"x" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nHost: pose\r\n\r\n",
        GET + b"".join(b"X-%d: 1\r\n" % n for n in range(MAX_HEADERS + 1)) + b"\r\n",
    ):
        assert problem_type(await talk(port, data)) == "/problems/head-too-large"
    await is_well(port)


async def test_an_ordinary_head_is_read(port: int) -> None:
    headers = b"".join(b"X-%d: %b\r\n" % (n, b"x" * 300) for n in range(MAX_HEADERS - 2))
    assert b" 200 OK" in await talk(port, GET + headers + b"Connection: close\r\n\r\n")


async def test_a_head_that_trickles_is_cut_off(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    started = time.monotonic()
    writer.write(b"GET /v1/health/live HTTP/1.1\r\n")

    async def trickle() -> None:
        while True:
            writer.write(b"X-A: 1\r\n")
            await asyncio.sleep(0.05)

    trickling = asyncio.ensure_future(trickle())
    answer = await asyncio.wait_for(reader.readuntil(b"}"), 20)  # what trickles on resets the connection
    trickling.cancel()
    writer.close()
    assert time.monotonic() - started < 10
    assert problem_type(answer) == "/problems/request-timeout"


async def test_a_second_request_may_not_trickle_either(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GET + b"\r\n")
    await reader.readuntil(b'"}')
    writer.write(b"GET /v1/h")
    assert problem_type(await asyncio.wait_for(reader.read(), 20)) == "/problems/request-timeout"
    writer.close()


async def test_a_connection_that_says_nothing_is_closed(port: int) -> None:
    assert await talk(port, b"") == b""


async def test_one_connection_more_than_may_be_is_told_so() -> None:
    """Those that have a request are not given up for it."""
    async with serving(SETTINGS.model_copy(update={"body_seconds": 30.0})) as (_, port):
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(SETTINGS.max_connections)]
        for _, writer in held:
            writer.write(b"POST /v1/pose HTTP/1.1\r\nHost: h\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\n")
        await asyncio.sleep(0.2)
        refused = await talk(port, b"")
        assert problem_type(refused) == "/problems/rate-limited"
        assert b"retry-after: 1" in refused and b"content-security-policy: default-src 'none'" in refused
        for _, writer in held:
            writer.close()
        await asyncio.sleep(0.1)
        await is_well(port)


async def test_connections_without_a_request_make_room_the_longest_idle_first() -> None:
    """One caller who opens all there may be would make the liveness probe fail, and the service be restarted."""
    async with serving(SETTINGS.model_copy(update={"head_seconds": 30.0})) as (_, port):
        held = []
        for number in range(SETTINGS.max_connections):
            held.append(await asyncio.open_connection("127.0.0.1", port))
            if number == 0:  # a request has been answered on it: it is idle since then, and not since it was opened
                await asyncio.sleep(0.05)
            if number == 2:
                held[1][1].write(GET[:30])
                held[0][1].write(GET + b"\r\n")
                await held[0][0].readuntil(b'"}')
        fresh = await talk(port, GET + b"\r\n")
        assert problem_type(fresh) == "/problems/rate-limited", "requests on those may be on their way"
        await asyncio.sleep(1.1)
        held.append(await asyncio.open_connection("127.0.0.1", port))
        cut = await asyncio.wait_for(held[1][0].read(), 10)
        assert problem_type(cut) == "/problems/rate-limited", "it had begun, and is told"
        await is_well(port)
        assert await asyncio.wait_for(held[2][0].read(), 10) == b"", "it had not, and is closed"
        assert not any(reader.at_eof() for reader, _ in (held[0], *held[3:]))
        for _, writer in held:
            writer.close()


async def test_what_is_no_http_is_answered_as_every_error_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And costs no line of the log, which anybody could fill."""
    async with serving(SETTINGS) as (app, port):
        for data in (
            b"\x16\x03\x01\x02\x00\x01\x00\x01",
            b"GET / HTTP/1.1\r\nbroken header\r\n\r\n",
            b"GET caf\xe9 H\r\n\r\n",
        ):
            answer = await talk(port, data)
            assert problem_type(answer) == "/problems/invalid-request"
            assert b"x-content-type-options: nosniff" in answer
        upgrade = GET + b"Connection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n"
        assert b" 200 OK" in await talk(port, upgrade, b"}")
        text = app.state.service.metrics.text().decode()
        assert 'tritonpose_rejected_total{reason="invalid-request"} 3.0' in text
        await is_well(port)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


async def test_a_body_that_goes_on_after_its_answer_comes_to_an_end(port: int) -> None:
    """The answer is out: what still comes is dropped, but not for ever."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/pose?model=none&x=1 HTTP/1.1\r\nHost: pose\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert b" 422 " in await reader.readuntil(b"\r\n\r\n")

    async def go_on() -> None:
        while True:
            writer.write(b"5\r\nabcde\r\n")
            await writer.drain()
            await asyncio.sleep(0.02)

    with pytest.raises(ConnectionError):
        await asyncio.wait_for(go_on(), 20)
    writer.transport.abort()
    await is_well(port)


async def test_a_caller_who_does_not_read_his_answer_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some megabytes of a drawn picture stay in the service's memory until he does, or has had his time."""
    monkeypatch.setattr(connections.BoundedProtocol, "write_seconds", 0.5)
    monkeypatch.setattr(connections.BoundedProtocol, "write_rate", 1e9)
    noise = np.random.default_rng(1).integers(0, 256, (1500, 2000, 3), np.uint8)
    picture = encode(noise, ".jpg")
    head = (
        "POST /v1/pose?format=image HTTP/1.1\r\nHost: pose\r\nAccept: image/png\r\n"
        f"Content-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
    )

    def ask() -> int:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            caller.sendall(head.encode() + picture)
            received = len(caller.recv(1))
            assert released.wait(20)
            try:
                while data := caller.recv(2**20):
                    received += len(data)
            except ConnectionError:
                pass
            return received

    async with serving(SETTINGS.model_copy(update={"body_seconds": 30.0})) as (app, port):
        released = threading.Event()
        asking = asyncio.ensure_future(asyncio.to_thread(ask))
        end = time.monotonic() + 20
        # His connection is the only one, and it goes without his doing anything.
        while 'status="200"' not in (text := app.state.service.metrics.text().decode()):
            assert time.monotonic() < end, text
            await asyncio.sleep(0.05)
        await asyncio.sleep(2)
        released.set()
        assert await asking < noise.nbytes // 2


@contextlib.asynccontextmanager
async def answering(size: int) -> AsyncIterator[tuple[int, list[str]]]:
    """A server that answers that many bytes to whatever comes; its port, and the reasons of its refusals."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        length = [(b"content-length", str(size).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": bytes(size)})

    reasons: list[str] = []
    options = connections.connection_options(SETTINGS, reasons.append)
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_config=None, **options))
    task = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        yield server.servers[0].sockets[0].getsockname()[1], reasons
    finally:
        server.should_exit = server.force_exit = True
        await asyncio.wait_for(task, 10)


class Reader:
    """Asks, and reads a little every 20 ms; all there is once released."""

    def __init__(self, port: int) -> None:
        self.released = threading.Event()
        self.received = asyncio.ensure_future(asyncio.to_thread(self._read, port))

    def _read(self, port: int) -> int:
        with socket.socket() as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            caller.settimeout(20)
            caller.connect(("127.0.0.1", port))
            caller.sendall(GET + b"Connection: close\r\n\r\n")
            received = 0
            try:
                while data := caller.recv(2**20 if self.released.is_set() else 1000):
                    received += len(data)
                    self.released.wait(0.02)
            except ConnectionError:
                pass
            return received


async def received_slowly(monkeypatch: pytest.MonkeyPatch, write_rate: float) -> int:
    """Bytes of a 60 MB answer that a caller gets who reads nearly nothing of it for two seconds."""
    monkeypatch.setattr(connections.BoundedProtocol, "write_seconds", 0.5)
    monkeypatch.setattr(connections.BoundedProtocol, "write_rate", write_rate)
    async with answering(60_000_000) as (port, _):
        reader = Reader(port)
        await asyncio.sleep(2)
        reader.released.set()
        return await reader.received


async def test_a_caller_who_reads_a_little_now_and_then_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a thousand of them would keep a thousand drawn pictures in memory for hours."""
    assert await received_slowly(monkeypatch, write_rate=1e9) < 40_000_000


async def test_a_caller_is_given_the_time_that_a_large_answer_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await received_slowly(monkeypatch, write_rate=6e6) > 60_000_000


async def test_answers_that_nobody_reads_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections.BoundedProtocol, "most_unsent", 70_000_000)
    async with answering(60_000_000) as (port, reasons):
        first = Reader(port)
        await asyncio.sleep(1)
        second = Reader(port)
        await asyncio.sleep(1)
        for reader in (first, second):
            reader.released.set()
        assert await first.received < 40_000_000, "who reads longest gives way"
        assert await second.received > 60_000_000
        assert reasons == ["connections"]


async def test_chunked_bodies_are_counted_whatever_they_declare() -> None:
    settings = SETTINGS.model_copy(update={"max_body_bytes": 200_000, "max_image_bytes": 150_000})
    async with serving(settings) as (_, port):
        head = b"POST /v1/pose HTTP/1.1\r\nHost: pose\r\nContent-Type: image/png\r\n"
        chunk = b"186a0\r\n" + b"x" * 100_000 + b"\r\n"
        assert b" 413 " in await talk(port, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 3, b"}")
        assert b" 413 " in await talk(port, head + b"Content-Length: 200001\r\n\r\n", b"}")
        # Both lengths at once is how requests are smuggled past a proxy.
        both = await talk(port, head + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        assert b" 400 " in both
        cut = await talk(port, head + b"Content-Length: 150000\r\n\r\n" + b"x" * 100, b"}")  # and then nothing
        assert b" 408 " in cut
        await is_well(port)


async def test_only_trusted_proxies_say_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def names(app: FastAPI) -> None:
        find = app.state.service.callers.find

        def remember(key: object, address: str) -> object:
            caller = find(key, address)
            asked.append(caller.name)
            return caller

        monkeypatch.setattr(app.state.service.callers, "find", remember)

    request = b"GET /v1/models HTTP/1.1\r\nHost: pose\r\nX-Forwarded-For: 1.1.1.1, 9.8.7.6\r\nConnection: close\r\n\r\n"
    for proxies in ((), ("10.0.0.0/8",), ("127.0.0.1",)):
        async with serving(SETTINGS.model_copy(update={"trusted_proxies": proxies})) as (app, port):
            names(app)
            assert b" 200 " in await talk(port, request)
    assert asked == ["address 127.0.0.1", "address 127.0.0.1", "address 9.8.7.6"]


def test_a_low_limit_on_open_files_is_raised_for_the_connections() -> None:
    """Without, the service would run out of files at a connection that it meant to take."""
    code = (
        "import resource; from service.connections import allow_descriptors\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))\n"
        "allow_descriptors(300); assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, hard)\n"
        "allow_descriptors(100); assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, hard)\n"
        "allow_descriptors(10**12); print(resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 300)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "True\n"
