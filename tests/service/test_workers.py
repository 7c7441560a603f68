"""Several workers behind one port: killing one, hanging one, or replacing all of them costs no caller an answer.

Were these to fail, a crash in one process would take the service down, a restart would lose requests, or Prometheus
would show one worker's figures as if they were all.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.cores import available_cores
from service.metric_files import MetricFiles
from service.scenes import render_scene
from service.settings import Settings
from service.supervisor import share
from tests.loadtest.stand_in import write_repository
from tests.service.marked_people import encode
from tests.service.running import Running, serving

PHOTO = encode(render_scene(5, size=(320, 240), people=2).image, ".jpg")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("models"))


@pytest.fixture
def pair(repository: Path, tmp_path: Path) -> Iterator[Running]:
    """Two workers, both ready."""
    variables = {"TRITONPOSE_WORKER_SILENCE_SECONDS": "15"}
    with serving(repository, tmp_path / "log", "--workers", "2", variables=variables) as running:
        running.wait_for(lambda: running.metric('tritonpose_workers{state="ready"}') == 2)
        yield running


class Callers:
    """Asks for poses over a connection that is kept, again and again, and remembers what it got."""

    def __init__(self, address: str, count: int) -> None:
        self.address = address
        self.statuses: list[int | str] = []
        self.stop = threading.Event()
        self.lanes = [threading.Thread(target=self._ask, daemon=True) for _ in range(count)]

    def _ask(self) -> None:
        with httpx.Client(base_url=self.address, timeout=60) as client:
            while not self.stop.is_set():
                try:
                    self.statuses.append(client.post("/v1/pose", files={"image": PHOTO}).status_code)
                except httpx.TransportError as error:
                    self.statuses.append(repr(error))
                time.sleep(0.1)  # the workers that start need the cores as well

    def __enter__(self) -> Callers:
        for lane in self.lanes:
            lane.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for lane in self.lanes:
            lane.join(60)


@pytest.mark.slow
def test_killed_and_hanging_workers_are_replaced_while_the_other_answers(pair: Running) -> None:
    httpx.post(f"{pair.address}/v1/pose", files={"image": PHOTO}, timeout=30).raise_for_status()
    time.sleep(1)  # a scrape may show what was a second ago
    answered = 'tritonpose_requests_total{route="/v1/pose",status="200"}'
    assert pair.metric(answered) == 1
    first, second = pair.workers()
    os.kill(first, signal.SIGKILL)
    end = time.monotonic() + 60
    while pair.metric('tritonpose_worker_ends_total{reason="died"}') < 1 or len(pair.workers()) < 2:
        assert httpx.post(f"{pair.address}/v1/pose", files={"image": PHOTO}, timeout=30).status_code == 200
        assert time.monotonic() < end
    httpx.post(f"{pair.address}/v1/pose", files={"image": PHOTO}, timeout=30).raise_for_status()
    time.sleep(1)
    assert pair.metric(answered) > 1, "what the dead worker had counted is kept"
    pair.wait_for(lambda: pair.metric('tritonpose_workers{state="ready"}') == 2)
    os.kill(second, signal.SIGSTOP)  # its connections stand still; new ones are the other's
    pair.wait_for(lambda: second not in pair.workers(), 60)
    pair.wait_for(lambda: pair.metric('tritonpose_workers{state="ready"}') == 2)
    assert pair.metric('tritonpose_worker_ends_total{reason="hung"}') == 1
    assert pair.metric("tritonpose_ready") == 1
    pair.process.send_signal(signal.SIGTERM)
    assert pair.process.wait(30) == 0


@pytest.mark.slow
def test_a_restart_of_all_workers_loses_no_request(pair: Running) -> None:
    before = set(pair.workers())
    with Callers(pair.address, 2) as callers:
        pair.process.send_signal(signal.SIGHUP)
        pair.wait_for(lambda: pair.metric('tritonpose_worker_ends_total{reason="restarted"}') == 2)
        pair.wait_for(lambda: pair.metric('tritonpose_workers{state="ready"}') == 2)
    time.sleep(1)
    assert not before & set(pair.workers())
    assert len(callers.statuses) > 10
    assert set(callers.statuses) == {200}
    counted = pair.metric('tritonpose_requests_total{route="/v1/pose",status="200"}')
    assert counted == len(callers.statuses), "every request is counted once, by whichever worker, gone or there"


@pytest.mark.slow
def test_a_worker_told_to_go_is_replaced_and_has_not_died(repository: Path, tmp_path: Path) -> None:
    """Else who sends a worker SIGTERM gets an alert; and one that must be killed at the end is no orderly end."""
    variables = {"TRITONPOSE_SHUTDOWN_SECONDS": "1"}
    with serving(repository, tmp_path / "log", "--workers", "2", variables=variables) as running:
        running.wait_for(lambda: running.metric('tritonpose_workers{state="ready"}') == 2)
        gone, stays = running.workers()
        with Callers(running.address, 1) as callers:
            os.kill(gone, signal.SIGTERM)
            running.wait_for(lambda: running.metric('tritonpose_worker_ends_total{reason="restarted"}') == 1)
            running.wait_for(lambda: running.metric('tritonpose_workers{state="ready"}') == 2)
        assert set(callers.statuses) == {200}
        assert gone not in running.workers() and stays in running.workers()
        assert running.metric('tritonpose_worker_ends_total{reason="died"}') == 0
        os.kill(stays, signal.SIGSTOP)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(30) == 1
        assert any("does not end" in line for line in running.lines())


@pytest.mark.slow
def test_workers_end_in_order_when_their_supervisor_is_killed(pair: Running) -> None:
    workers = pair.workers()
    pair.process.kill()
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
def test_what_no_worker_can_start_with_is_an_error_at_once(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "uvicorn.py").write_text("raise ImportError('this one is broken')")
    log = tmp_path / "log"
    with serving(repository, log, "--workers", "2", variables={"PYTHONPATH": str(tmp_path)}, ready=False) as broken:
        assert broken.process.wait(120) == 1
    assert "this one is broken" in log.read_text() and "so would the next" in log.read_text()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with serving(repository, log, "--workers", "2", "--port", port, ready=False) as second:
            assert second.process.wait(60) == 1
    assert "in use" in log.read_text()


def test_cores_are_divided_unless_threads_are_given() -> None:
    cores = available_cores()
    assert share(Settings(workers=2)).threads == max(1, cores // 2)
    assert share(Settings(workers=2)).cpu_threads == max(2, cores // 2)
    assert share(Settings(workers=200, threads=3, cpu_threads=5)).threads == 3
    assert share(Settings(workers=3, cpu_threads=5)).cpu_threads == 5


def test_what_workers_have_counted_outlives_them(tmp_path: Path) -> None:
    from prometheus_client.mmap_dict import MmapedDict, mmap_key

    def write(kind: str, pid: int, name: str, value: float) -> None:
        file = MmapedDict(str(tmp_path / f"{kind}_{pid}.db"))
        file.write_value(mmap_key(name.removesuffix("_total"), name, [], [], "help"), value, 0.0)
        file.close()

    files = MetricFiles(tmp_path)
    for pid, count, now in ((1, 3.0, 5.0), (2, 4.0, 6.0), (3, 5.0, 7.0)):
        write("counter", pid, "asked_total", count)
        write("gauge_livesum", pid, "waiting", now)
    assert b"asked_total 12.0" in files.text() and b"waiting 18.0" in files.text()
    for pid in (1, 2):
        files.retire(pid)
    files.count("replaced", "Replaced.", reason="died")
    files.count("replaced", "Replaced.", reason="died")
    assert b"asked_total 12.0" in files.text() and b"waiting 7.0" in files.text()
    assert b'replaced_total{reason="died"} 2.0' in files.text()
    assert sorted(path.name for path in tmp_path.glob("*_[12].db")) == []


def test_a_scrape_that_does_not_end_does_not_keep_the_supervisor(tmp_path: Path) -> None:
    """Anybody may scrape, and a worker that hangs may do so in the middle of a scrape; nothing is lost meanwhile."""
    files = MetricFiles(tmp_path)
    with (tmp_path / "lock").open("w") as scrape:
        fcntl.flock(scrape, fcntl.LOCK_SH)

        def end_two() -> None:
            files.retire(1)
            files.count("replaced", "Replaced.", reason="died")
            files.count("replaced", "Replaced.", reason="died")

        supervisor = threading.Thread(target=end_two, daemon=True)
        supervisor.start()
        supervisor.join(5)
        assert not supervisor.is_alive()
        assert not files.settle()
    assert files.settle()
    assert b'replaced_total{reason="died"} 2.0' in files.text()
