"""A tritonserver in a process of its own, over a model repository: for ``make triton``, tests and benches."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

from deploy.triton.installation import Installation, find_installation

#: ``none``: what is there at the start; ``poll``: Triton looks for changes itself; ``explicit``: callers load models.
ModelControl = Literal["none", "poll", "explicit"]

_HOST = "127.0.0.1"
_LOG_TAIL = 20_000
# A back end's process imports ONNX Runtime before it answers; Triton's own limit of 30 s is short of what a machine
# that is busy with other things takes for twelve of them.
_STUB_SECONDS = 180
_EXIT_SECONDS = 30  # Triton's own, for requests in flight
_SHARED_MEMORY = Path("/dev/shm")
_PR_SET_PDEATHSIG = 1


class TritonFailed(RuntimeError):
    """The server ended or did not become ready; the message has the end of its log."""


@dataclass(frozen=True)
class Ports:
    """Where the server listens, on loopback only."""

    http: int
    grpc: int
    metrics: int

    @classmethod
    def free(cls) -> Ports:
        """Three ports that nobody listens on now."""
        with contextlib.ExitStack() as stack:
            found = []
            for _ in range(3):
                listener = stack.enter_context(socket.socket())
                listener.bind((_HOST, 0))
                found.append(int(listener.getsockname()[1]))
        return cls(*found)


class TritonServer:
    """One tritonserver; as a context manager it is ready inside and stopped after.

    ``start`` may be called again after ``stop``, ``kill`` or a crash: the ports stay the same.
    """

    def __init__(
        self,
        repository: Path,
        *,
        ports: Ports | None = None,
        control: ModelControl = "none",
        log: Path | None = None,
        start_seconds: float = 180.0,
        exit_on_error: bool = True,
        arguments: Sequence[str] = (),
        installation: Installation | None = None,
    ) -> None:
        """Nothing is started yet.

        Args:
            repository: model repository in Triton's layout.
            ports: loopback ports; free ones by default.
            control: how models come and go while the server runs; ``poll`` looks every second.
            log: file that the server's log is appended to; by default one that goes with this object.
            start_seconds: longest time from the start to ready.
            exit_on_error: end when a model cannot be loaded at the start, instead of serving the others.
            arguments: more options of tritonserver.
            installation: the wheel's place; ``.venv/triton`` by default.

        Raises:
            TritonMissing: the wheel is not installed.
            NotADirectoryError: there is no repository.
        """
        if not repository.is_dir():
            raise NotADirectoryError(f"there is no model repository at {repository}")
        self.repository = repository.resolve()
        self.ports = ports or Ports.free()
        self._control = control
        self._start_seconds = start_seconds
        self._exit_on_error = exit_on_error
        self._arguments = list(arguments)
        self._installation = installation or find_installation()
        self._folder = Path(tempfile.mkdtemp(prefix="tritonpose-triton-"))
        self._backends = self._folder / "backends"
        self._installation.copy_backends(self._backends)
        self.log = log or self._folder / "triton.log"
        self._models = self.repository
        if shlex.quote(str(self.repository)) != str(self.repository):
            # Triton starts its back ends' processes through a shell and quotes nothing: "my models" are two words.
            self._models = self._folder / "model_repository"
            self._models.symlink_to(self.repository, target_is_directory=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._prefix = f"tritonpose_{uuid.uuid4().hex[:12]}_"

    @property
    def grpc_url(self) -> str:
        """``host:port`` of gRPC: the value of TRITONPOSE_TRITON_URL."""
        return f"{_HOST}:{self.ports.grpc}"

    @property
    def http_url(self) -> str:
        """``host:port`` of HTTP."""
        return f"{_HOST}:{self.ports.http}"

    @property
    def metrics_url(self) -> str:
        """Address of the Prometheus page."""
        return f"http://{_HOST}:{self.ports.metrics}/metrics"

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process is not None and self.running else None

    @property
    def exit_code(self) -> int | None:
        """What it ended with, negative for a signal; None while it runs and before the first start."""
        return None if self._process is None else self._process.poll()

    @property
    def running(self) -> bool:
        """Whether the process is there; it need not be ready."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> TritonServer:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self, *, wait: bool = True) -> None:
        """Start the process and, unless told otherwise, return when it is ready. Raises TritonFailed."""
        if self.running:
            return
        self._sweep()
        self._started = time.monotonic()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            # Linux takes the end of the starting thread for the end of the parent: so it is one that stays.
            self._process = _SPAWNER.submit(
                subprocess.Popen,
                self._command(),
                cwd=self._folder,
                env=self._installation.variables(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for whoever started it, who ends it in order
                preexec_fn=end_with_parent,
            ).result()
        if wait:
            self.wait_ready()

    def ready(self) -> bool:
        """Whether the server says that it and all its models are ready. False when it does not answer."""
        connection = http.client.HTTPConnection(_HOST, self.ports.http, timeout=2)
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def wait_ready(self) -> None:
        """Return when ready; otherwise end the process and raise TritonFailed with what its log says."""
        while not self.poll_ready():
            time.sleep(0.05)

    def poll_ready(self) -> bool:
        """Whether a server that was started is ready by now. Raises TritonFailed as ``wait_ready`` does."""
        if self.ready():
            return True
        if not self.running:
            raise TritonFailed(f"tritonserver ended with {self.exit_code}; {self._complaints()}")
        if time.monotonic() > self._started + self._start_seconds:
            self.kill()
            raise TritonFailed(f"tritonserver is not ready after {self._start_seconds:g} s; {self._complaints()}")
        return False

    def log_tail(self) -> str:
        """The last lines of the log."""
        try:
            with self.log.open("rb") as log:
                log.seek(0, os.SEEK_END)
                log.seek(max(0, log.tell() - _LOG_TAIL))
                return log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def stop(self) -> int | None:
        """End it as an operator would (SIGTERM: requests in flight are finished); its exit code.

        Triton refuses new connections at once, so a gateway drains before this is called.
        """
        process = self._process
        if process is None:
            return None
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_EXIT_SECONDS + 15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._sweep()
        return process.returncode

    def kill(self) -> None:
        """End it with SIGKILL, as when the kernel or the hardware does."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._sweep()

    def close(self) -> None:
        """Stop, and remove what this object made (a log given by the caller stays)."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _complaints(self) -> str:
        """Why models were refused, as the log's table of models says it, or the end of the log."""
        tail = self.log_tail()
        rows = [line.strip("| ") for line in tail.splitlines() if line.startswith("|") and "UNAVAILABLE" in line]
        reasons = [re.sub(r"\s*\|\s*", " ", row) for row in rows]
        return f"from {self.log}:\n" + ("\n".join(reasons) or tail)

    def _command(self) -> list[str]:
        options = {
            "model-repository": self._models,
            "backend-directory": self._backends,
            "http-address": _HOST,
            "http-port": self.ports.http,
            "grpc-address": _HOST,
            "grpc-port": self.ports.grpc,
            "metrics-address": _HOST,
            "metrics-port": self.ports.metrics,
            "strict-readiness": "true",
            "exit-on-error": str(self._exit_on_error).lower(),
            "exit-timeout-secs": _EXIT_SECONDS,
            "model-control-mode": self._control,
            "log-verbose": 0,
        }
        if self._control == "poll":
            options["repository-poll-secs"] = 1
        command = [str(self._installation.program), "--disable-auto-complete-config"]
        command += [f"--{name}={value}" for name, value in options.items()]
        command.append(f"--backend-config=python,stub-timeout-seconds={_STUB_SECONDS}")
        command.append(f"--backend-config=python,shm-region-prefix-name={self._prefix}")
        return command + self._arguments

    def _sweep(self) -> None:
        """Remove what a server that was killed leaves: back-end processes and their shared memory."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        if _SHARED_MEMORY.is_dir():
            for region in _SHARED_MEMORY.glob(f"*{self._prefix}*"):
                region.unlink(missing_ok=True)


def end_with_parent() -> None:
    """In the child: be told to end when the starting thread's process is gone, whatever ended it (Linux only)."""
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


_LIBC = ctypes.CDLL(None)
_SPAWNER = ThreadPoolExecutor(1, "spawn")
