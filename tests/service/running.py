"""Real server processes for tests, on a free port, that say where they are when they answer."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from loadtest.server import child_processes

START_SECONDS = 300.0


@dataclass
class Running:
    """A process of ``tritonpose serve``."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def metric(self, name: str) -> float:
        """Value of one sample, by its name and labels as scraped; 0 where it is not there."""
        for line in httpx.get(f"{self.address}/metrics", timeout=30).text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[-1])
        return 0.0

    def workers(self) -> list[int]:
        """Process ids of its workers."""
        return [
            pid
            for pid in child_processes(self.process.pid)
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]

    def wait_for(self, what: Callable[[], bool], seconds: float = START_SECONDS) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert self.process.poll() is None, "\n".join(self.lines()[-20:])
            assert time.monotonic() < end, "\n".join(self.lines()[-20:])
            time.sleep(0.1)

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.address}/v1/health/ready", timeout=5).status_code == 200
        except httpx.TransportError:
            return False


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def serving(
    repository: Path, log: Path, *options: str, variables: Mapping[str, str] | None = None, ready: bool = True
) -> Iterator[Running]:
    """The service over ``repository``; standard output and error go to ``log``."""
    port = free_port()
    command = [sys.executable, "-m", "service", "serve", "--port", str(port), "--repository", str(repository), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(variables or {})}
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    running = Running(process, f"http://127.0.0.1:{port}", log)
    try:
        if ready:
            running.wait_for(running.ready)
        yield running
    finally:
        left = child_processes(process.pid)
        process.kill()
        process.wait()
        for pid in left:  # workers end by themselves when their supervisor is gone; tests that fail need not wait
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
