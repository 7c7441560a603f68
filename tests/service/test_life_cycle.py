"""The end of a process, as balancers, orchestrators and impatient people bring it about: nobody loses an answer.

Were these to fail, every deployment would cost callers requests, or a pod would hang until it is killed.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from service.scenes import render_scene
from service.settings import Settings
from service.supervisor import _MARGIN_SECONDS
from tests.loadtest.stand_in import write_repository
from tests.service import wire
from tests.service.marked_people import card_engine, encode
from tests.service.running import Running, serving

PHOTO = encode(render_scene(5, size=(1600, 1200), people=2).image, ".jpg")
LONG = [("image", PHOTO)] * 60


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("models"))


@contextmanager
def in_flight(running: Running) -> Iterator[list[httpx.Response]]:
    """A request of many pictures that runs when the block begins; its answer is in the list after it."""
    answers: list[httpx.Response] = []
    seen = threading.Event()

    def ask() -> None:
        while not (seen.is_set() and answers):  # as often as it takes for one of them to be seen running
            answers.append(httpx.post(f"{running.address}/v1/pose", files=LONG, timeout=60))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        running.wait_for(lambda: running.metric("tritonpose_requests_running") >= 1)
    finally:
        seen.set()
    yield answers
    thread.join(60)


@pytest.mark.slow
def test_while_it_drains_it_is_unready_and_answers_everybody(repository: Path, tmp_path: Path) -> None:
    variables = {"TRITONPOSE_DRAIN_SECONDS": "6"}
    with serving(repository, tmp_path / "log", variables=variables) as running:
        with httpx.Client(base_url=running.address, timeout=60) as kept, in_flight(running) as answers:
            assert "connection" not in kept.get("/v1/health/live").headers
            running.process.send_signal(signal.SIGTERM)
            started = time.monotonic()
            while running.ready():
                assert time.monotonic() - started < 5
            # On a connection that was there, which ends with it, and on a new one.
            answer = kept.post("/v1/pose", files={"image": PHOTO})
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")
            new = httpx.post(f"{running.address}/v1/pose", files={"image": PHOTO}, timeout=60)
            assert (new.status_code, new.headers["connection"]) == (200, "close")
            assert running.metric('tritonpose_workers{state="draining"}') == 1
        assert answers and {one.status_code for one in answers} == {200}
        assert running.process.wait(30) == 0


@pytest.mark.slow
def test_a_signal_to_all_its_processes_is_a_signal_to_the_service(repository: Path, tmp_path: Path) -> None:
    """As systemd and kill of a process group send it: the workers must not close the port before the drain is over."""
    variables = {"TRITONPOSE_DRAIN_SECONDS": "8"}
    with serving(repository, tmp_path / "log", "--workers", "2", variables=variables) as running:
        with httpx.Client(base_url=running.address, timeout=30) as kept:
            assert kept.get("/v1/health/ready").status_code == 200
            for pid in (*running.workers(), running.process.pid):
                os.kill(pid, signal.SIGTERM)
            time.sleep(2)
            assert kept.get("/v1/health/ready").status_code == 503
            new = httpx.post(f"{running.address}/v1/pose", files={"image": PHOTO}, timeout=30)
            assert (new.status_code, new.headers["connection"]) == (200, "close")
        assert running.process.wait(40) == 0


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_callers_who_hang_do_not_keep_it(repository: Path, tmp_path: Path, workers: str) -> None:
    variables = {"TRITONPOSE_SHUTDOWN_SECONDS": "3"}
    with serving(repository, tmp_path / "log", "--workers", workers, variables=variables) as running:
        port = int(running.address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as half, socket.create_connection(("127.0.0.1", port)):
            half.sendall(
                b"POST /v1/pose HTTP/1.1\r\nHost: h\r\nContent-Type: image/jpeg\r\nContent-Length: 9999\r\n\r\nhalf"
            )
            running.wait_for(lambda: running.metric("tritonpose_requests_waiting") == 1)
            running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(20) == 0


async def test_a_request_that_outlasts_the_end_is_told_so() -> None:
    """As a 503 that invites to try elsewhere, and not as uvicorn's plain 500."""
    engine = card_engine()
    async with AsyncExitStack() as stack:
        app, port = await stack.enter_async_context(wire.serving(Settings(cpu_threads=1, shutdown_seconds=1), engine))
        service = app.state.service
        engine.delay = 60
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            asking = asyncio.ensure_future(
                client.post("/v1/pose", content=PHOTO, headers={"Content-Type": "image/jpeg"})
            )
            while service.admission.running == 0:
                assert not asking.done()
                await asyncio.sleep(0.01)
            service.readiness.drain()
            await stack.aclose()
            answer = await asking
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/engine-unavailable")
    assert int(answer.headers["retry-after"]) >= 1 and answer.headers["connection"] == "close"
    assert 'tritonpose_requests_total{route="/v1/pose",status="503"} 1.0' in service.metrics.text().decode()


def test_by_default_it_has_ended_after_30_seconds() -> None:
    settings = Settings()
    assert settings.drain_seconds + settings.shutdown_seconds + _MARGIN_SECONDS < 30


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_second_signal_ends_it_at_once(repository: Path, tmp_path: Path, workers: str) -> None:
    variables = {"TRITONPOSE_DRAIN_SECONDS": "60"}
    with serving(repository, tmp_path / "log", "--workers", workers, variables=variables) as running:
        running.process.send_signal(signal.SIGTERM)
        running.wait_for(lambda: any("shutting down" in line for line in running.lines()))
        with pytest.raises(Exception, match="timed out"):
            running.process.wait(2)
        running.process.send_signal(signal.SIGINT)
        running.process.wait(15)


@pytest.mark.slow
def test_a_rolling_restart_of_two_instances_loses_no_request(repository: Path, tmp_path: Path) -> None:
    """Callers ask whoever was ready when the balancer last looked, half a second ago at most."""
    variables = {"TRITONPOSE_DRAIN_SECONDS": "5"}
    logs = (tmp_path / f"log{n}" for n in itertools.count())
    stop = threading.Event()
    statuses: list[int | str] = []
    with ExitStack() as stack:

        def start() -> Running:
            return stack.enter_context(serving(repository, next(logs), variables=variables))

        instances = [start(), start()]
        ready = [one.address for one in instances]

        def balance() -> None:
            while not stop.is_set():
                ready[:] = [one.address for one in list(instances) if one.ready()] or ready
                time.sleep(0.3)

        def call(turn: Iterator[int]) -> None:
            with httpx.Client(timeout=60) as client:
                while not stop.is_set():
                    known = list(ready)
                    address = known[next(turn) % len(known)]
                    try:
                        status: int | str = client.post(f"{address}/v1/pose", files={"image": PHOTO}).status_code
                    except httpx.TransportError as error:
                        status = repr(error)
                    statuses.append(status)
                    time.sleep(0.1)  # instances that start need the cores as well

        turn = itertools.count()
        threads = [threading.Thread(target=call, args=(turn,), daemon=True) for _ in range(2)]
        threads.append(threading.Thread(target=balance, daemon=True))
        for thread in threads:
            thread.start()
        for place in (0, 1):
            old = instances[place]
            instances.append(start())
            old.process.send_signal(signal.SIGTERM)
            assert old.process.wait(60) == 0
            instances[place] = instances.pop()
        stop.set()
        for thread in threads:
            thread.join(60)
    assert len(statuses) > 10
    assert set(statuses) == {200}
