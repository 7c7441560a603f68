"""The real process: it starts, says where it is, answers over a socket, drains on SIGTERM and exits with 0."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.scenes import render_scene
from tests.loadtest.stand_in import write_repository
from tests.service.marked_people import encode

PHOTO = encode(render_scene(5, people=3).image, ".jpg")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("models"))


@pytest.fixture
def server(repository: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its address, once it is ready."""
    command = [sys.executable, "-m", "service", "serve", "--port", "0", "--repository", str(repository)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = ""
        for line in process.stdout:
            if found := re.search(r"curl .*(http://\S+)/v1/pose", line):
                address = found.group(1)
                break
        assert address, process.stderr.read() if process.stderr else ""
        end = time.monotonic() + 60
        while httpx.get(f"{address}/v1/health/ready").status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.05)
        yield process, address
    finally:
        process.kill()
        process.communicate()


def test_it_answers_and_goes_in_order(server: tuple[subprocess.Popen[str], str]) -> None:
    process, address = server
    with httpx.Client(base_url=address, timeout=30) as client:
        answer = client.post("/v1/pose", files={"image": PHOTO})
        assert answer.status_code == 200
        assert answer.json()["annotations"]
        assert "server" not in answer.headers
        assert b"<canvas" in client.get("/").content
        # A hundred pictures are on their way when the signal comes: they must be answered. A quick machine may be
        # done with a hundred before anyone looks, so they are sent until one request is seen under way.
        answers: list[httpx.Response] = []
        seen = threading.Event()

        def post() -> None:
            while not seen.is_set():
                answers.append(client.post("/v1/pose", files=[("image", PHOTO)] * 100))

        thread = threading.Thread(target=post)
        thread.start()
        with httpx.Client(base_url=address) as watcher:
            while "tritonpose_requests_running 1.0" not in watcher.get("/metrics").text:
                assert thread.is_alive()
        seen.set()
        process.send_signal(signal.SIGTERM)
        thread.join(30)
    assert {answer.status_code for answer in answers} == {200}
    assert {len(answer.json()["images"]) for answer in answers} == {100}
    assert process.wait(30) == 0


def test_a_port_that_is_taken_is_an_error(server: tuple[subprocess.Popen[str], str], repository: Path) -> None:
    port = server[1].rpartition(":")[2]
    command = [sys.executable, "-m", "service", "serve", "--port", port, "--repository", str(repository)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert second.returncode != 0
    assert "in use" in second.stderr


def test_early_answers_reach_callers_who_are_still_sending(server: tuple[subprocess.Popen[str], str]) -> None:
    """413 must arrive as an answer, not as a broken pipe."""
    with httpx.Client(base_url=server[1], timeout=30) as client:
        large = client.post("/v1/pose", content=b"x" * (70 * 2**20), headers={"Content-Type": "image/jpeg"})
        assert large.status_code == 413
        assert client.post("/v1/pose", files={"image": PHOTO}).status_code == 200


def test_serving_needs_no_torch() -> None:
    code = "import sys, service.server, service.engines.embedded; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
