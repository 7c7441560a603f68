"""``python -m deploy.triton``, what ``make triton`` runs: in order up, through a crash of Triton, in order down.

Were these to fail, one command would no longer be all that Triton takes, or a crash would need a person.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deploy.triton.installation import Installation
from service.scenes import render_scene
from tests.conftest import ROOT
from tests.deploy.test_triton_server import children, gone
from tests.loadtest.stand_in import write_repository
from tests.service.marked_people import encode

pytestmark = pytest.mark.slow
PHOTO = encode(render_scene(5, people=1, size=(320, 240)).image, ".jpg")


class Program:
    """The running command."""

    def __init__(self, repository: Path, log: Path) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        command = [sys.executable, "-m", "deploy.triton", "--port", str(port), "--repository", str(repository)]
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    def post(self) -> int:
        try:
            return self.client.post("/v1/pose", files={"image": PHOTO}).status_code
        except httpx.TransportError:
            return 0

    def wait_for(self, status: int, seconds: float = 120.0) -> None:
        end = time.monotonic() + seconds
        while (got := self.post()) != status:
            assert self.process.poll() is None, self.log.read_text(errors="replace")
            assert time.monotonic() < end, f"{got}, not {status}:\n{self.log.read_text(errors='replace')[-4000:]}"
            time.sleep(0.1)

    def child(self, name: str) -> int:
        """Process id of the child whose command has this name in it."""
        for pid in children(self.process.pid):
            if name in Path(f"/proc/{pid}/cmdline").read_bytes().decode():
                return pid
        raise AssertionError(f"no child {name}")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("models"))


@pytest.fixture
def program(triton_installation: Installation, repository: Path, tmp_path: Path) -> Iterator[Program]:
    running = Program(repository, tmp_path / "log")
    try:
        running.wait_for(200)
        yield running
    finally:
        running.client.close()
        with contextlib.suppress(ProcessLookupError):
            running.process.send_signal(signal.SIGTERM)
        running.process.wait(120)


def test_triton_that_was_killed_is_started_again(program: Program) -> None:
    first, gateway = program.child("tritonserver"), program.child("service")
    os.kill(first, signal.SIGKILL)
    program.wait_for(503, seconds=10)
    assert program.client.get("/v1/health/live").status_code == 200
    program.wait_for(200)
    assert program.child("tritonserver") != first
    assert program.child("service") == gateway
    assert "Triton ended with -9\nstarting Triton again in 0.5 s" in program.log.read_text(errors="replace")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_both_end_in_order(program: Program, number: signal.Signals) -> None:
    triton, gateway = program.child("tritonserver"), program.child("service")
    program.process.send_signal(number)
    end = time.monotonic() + 60
    while not gone(gateway):
        assert not gone(triton), "Triton went before the gateway"
        assert time.monotonic() < end
        time.sleep(0.01)
    assert program.process.wait(60) == 0
    assert gone(triton)


def test_nothing_is_left_when_the_gateway_ends_by_itself(program: Program) -> None:
    triton, gateway = program.child("tritonserver"), program.child("service")
    os.kill(gateway, signal.SIGKILL)
    assert program.process.wait(60) != 0
    assert gone(triton)


def test_nothing_is_left_when_it_is_killed_itself(program: Program) -> None:
    pids = [program.child("tritonserver"), program.child("service")]
    program.process.kill()
    end = time.monotonic() + 60
    while not all(map(gone, pids)):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_repository_that_cannot_be_served_is_named(triton_installation: Installation, tmp_path: Path) -> None:
    broken = write_repository(tmp_path / "models")
    (broken / "person_detector" / "1" / "model.onnx").write_bytes(b"no graph")
    command = [sys.executable, "-m", "deploy.triton", "--repository", str(broken), "--port", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 1
    assert "person_detector" in done.stderr and "model.onnx" in done.stderr
    assert "Traceback" not in done.stderr
