"""The real service in a process of its own, for the bench and the tests."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from service.client import PoseClient

ROOT = Path(__file__).resolve().parent.parent
_STOP_SECONDS = 30.0
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


class ServiceProcess:
    """``python -m service serve`` on a free port; a context manager that returns when the service is ready."""

    def __init__(
        self,
        settings: Mapping[str, str] | None = None,
        *,
        start_seconds: float = 60.0,
        program: Sequence[str] = ("service", "serve", "--host", "127.0.0.1"),
        port: int | None = None,
    ) -> None:
        """``settings`` are environment variables (``TRITONPOSE_...``) beside those of this process.

        ``program``: module and arguments of another one that serves the same routes and takes ``--port``. ``port``: a
        free one by default.
        """
        self._program = program
        self._settings = dict(settings or {})
        self._start_seconds = start_seconds
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed by stop()
        self._process: subprocess.Popen[str] | None = None
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> ServiceProcess:
        command = [sys.executable, "-m", *self._program, "--port", str(self.port)]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "TRITONPOSE_LOG_LEVEL": "warning", **self._settings},
            stdout=self._log,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=_end_with_parent,
        )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of the running service."""
        assert self._process is not None, "the service was not started"
        return self._process.pid

    def stop(self) -> int | None:
        """End the service as an operator would (SIGTERM), the hard way when that takes too long; its exit code."""
        if self._process is None:
            return None
        self._process.terminate()
        try:
            code = self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._log.close()
        self._process = None
        return code

    def resident_mb(self) -> float | None:
        """Resident memory in MB (10^6 bytes); None where the system does not tell."""
        return resident_mb(self.pid)

    def _wait(self) -> None:
        """Raise RuntimeError with the service's own words when it ends or does not become ready."""
        assert self._process is not None
        end = time.monotonic() + self._start_seconds
        with PoseClient(self.url) as client:
            while not client.ready():
                if self._process.poll() is not None or time.monotonic() > end:
                    self._log.seek(0)
                    state = f"ended with {self._process.poll()}" if self._process.poll() is not None else "is not ready"
                    raise RuntimeError(f"the service {state}:\n{self._log.read()[-4000:]}")
                time.sleep(0.05)


@contextmanager
def running_service(
    url: str | None, settings: Mapping[str, str] | None = None, *, start_seconds: float = 120.0
) -> Iterator[tuple[str, ServiceProcess | None]]:
    """The service at ``url``, which is not ours to look into (None); or one that is started here and ended after."""
    if url is not None:
        yield url.rstrip("/"), None
        return
    with ServiceProcess(settings, start_seconds=start_seconds) as service:
        yield service.url, service


def resident_mb(pid: int) -> float | None:
    """Resident memory of a process in MB; None where /proc does not tell."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    return None


def cpu_seconds(pid: int) -> float | None:
    """CPU time that a process has used so far; None where /proc does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def child_processes(pid: int) -> list[int]:
    """Process ids of a process's children; none where /proc does not tell."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []


def process_tree(pid: int) -> list[int]:
    """A process and all that come of it."""
    return [pid, *(one for child in child_processes(pid) for one in process_tree(child))]


def _end_with_parent() -> None:
    """In the child: get SIGTERM when a measurement is killed, which else leaves a service on the machine (Linux)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
