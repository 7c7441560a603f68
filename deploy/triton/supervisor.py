"""Triton and the gateway on top of it, as one program: started in order, watched, and stopped in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType

from deploy.triton.installation import ROOT
from deploy.triton.server import TritonFailed, TritonServer, end_with_parent

_LOOK_SECONDS = 0.2
# Pause before Triton is started anew, doubled each time it fails soon after.
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_HEALTHY_SECONDS = 60.0
# The gateway ends by itself within its own drain_seconds + shutdown_seconds; this is for one that hangs.
_GATEWAY_SECONDS = 90.0


class Supervisor:
    """Runs in the main thread of a program of its own: it takes SIGTERM and SIGINT."""

    def __init__(self, triton: TritonServer, gateway: Sequence[str], variables: Mapping[str, str]) -> None:
        """``gateway`` is the service's command, ``variables`` its environment beside that of this process."""
        self._triton = triton
        self._command = list(gateway)
        self._variables = dict(variables)
        self._gateway: subprocess.Popen[bytes] | None = None
        self._asked_to_stop = False
        self._pause = _FIRST_PAUSE
        self._started = 0.0
        self._ready = False
        self._next_start: float | None = None

    def run(self) -> int:
        """Serve until a signal comes or the gateway ends; the exit code.

        0 after a signal, the gateway's own when it ends by itself. While Triton is gone the gateway goes on, and
        answers 503.

        Raises:
            TritonFailed: Triton could not be started the first time. Later it is tried again for ever.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        try:
            _say(f"starting Triton (log: {self._triton.log})")
            self._begin()
            while not (self._asked_to_stop or self._triton.poll_ready()):
                time.sleep(_LOOK_SECONDS)
            if not self._asked_to_stop:
                self._now_ready()
                # A group of its own: Ctrl-C must not end the gateway and Triton at the same time.
                self._gateway = subprocess.Popen(
                    self._command,
                    cwd=ROOT,
                    env=os.environ | self._variables,
                    start_new_session=True,
                    preexec_fn=end_with_parent,
                )
                while not self._asked_to_stop and self._gateway.poll() is None:
                    self._look()
                    time.sleep(_LOOK_SECONDS)
        except BaseException:
            self._stop()
            raise
        return self._stop()

    def _look(self) -> None:
        """Once Triton has ended, or did not get ready in its time: start it anew after a pause."""
        if self._next_start is not None:
            if time.monotonic() >= self._next_start:
                self._begin()
        elif self._ready:
            if not self._triton.running:
                self._schedule(f"Triton ended with {self._triton.exit_code}")
        else:
            try:
                if self._triton.poll_ready():
                    self._now_ready()
            except TritonFailed as failure:
                self._schedule(str(failure))

    def _schedule(self, reason: str) -> None:
        now = time.monotonic()
        if self._ready and now - self._started > _HEALTHY_SECONDS:
            self._pause = _FIRST_PAUSE
        _say(f"{reason}\nstarting Triton again in {self._pause:g} s")
        self._next_start = now + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _begin(self) -> None:
        self._next_start, self._ready = None, False
        self._started = time.monotonic()
        self._triton.start(wait=False)

    def _now_ready(self) -> None:
        self._ready = True
        taken = time.monotonic() - self._started
        _say(f"Triton is ready after {taken:.1f} s: gRPC {self._triton.grpc_url}, HTTP {self._triton.http_url}")

    def _stop(self) -> int:
        """The gateway first, which finishes what it has accepted with Triton's help; then Triton."""
        code = 0
        if self._gateway is not None:
            code = _end(self._gateway)
            self._gateway = None
        self._triton.close()
        return code

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked_to_stop = True


def _end(gateway: subprocess.Popen[bytes]) -> int:
    """Ask the gateway to end, unless it has; its exit code."""
    if gateway.poll() is None:
        gateway.terminate()
        try:
            gateway.wait(_GATEWAY_SECONDS)
        except subprocess.TimeoutExpired:
            gateway.kill()
            gateway.wait()
    return gateway.returncode


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
