"""Several worker processes behind one port: starts them, replaces those that die or hang, ends them in order.

uvicorn's own supervisor does not fit: it waits without end for a worker that does not end, takes a second signal for
nothing, sends one to workers that Ctrl-C has reached already, and counts a worker as started when its models are not
yet loaded.

The listening socket is the supervisor's and is shared by all, so a connection that arrives while one of them dies is
taken by another. A worker opens the port when its models answer; only where no other is open does it open at once, so
that somebody says that the service is not ready.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from service.cores import available_cores
from service.logs import announce
from service.metric_files import VARIABLE, WORKER_ENDS, WORKER_ENDS_TEXT, MetricFiles
from service.settings import Settings

logger = logging.getLogger(__name__)

# What a worker is told.
OPEN, RETIRE, DRAIN = b"open", b"retire", b"drain"
# What it says besides its state: it goes by itself, and takes no new connections.
RETIRING = b"retiring"

_PAUSE = 0.2
# Imports, before the first word: seconds on a free core, more on a busy one.
_START_SECONDS = 120.0
# Beyond the time that requests in flight are given: engines and traces end too.
_MARGIN_SECONDS = 4.0
_MAX_DELAY = 10.0
_BACKLOG = 2048


@dataclass(eq=False)
class _Worker:
    number: int
    process: SpawnProcess
    pipe: Connection
    replaces: _Worker | None = None
    state: str = "imports"
    open: bool = False
    retired: bool = False
    end: str = "died"
    heard: float = field(default_factory=time.monotonic)

    def tell(self, command: bytes) -> None:
        try:
            self.pipe.send_bytes(command)
        except OSError:
            logger.warning("worker %d (process %d) cannot be told to %s", self.number, self.process.pid, command)


class Supervisor:
    """Runs ``settings.workers`` workers until SIGTERM or SIGINT; SIGHUP replaces them one after the other."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._share = share(settings)
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._to_replace: deque[_Worker] = deque()
        self._signals: deque[int] = deque()
        self._ending: float | None = None
        self._failures = 0
        self._not_before = 0.0
        self._started = False  # a worker has said a word: the settings are good enough to run
        self._orderly = True

    def run(self) -> bool:
        """Serve until told to end. False when the port or the workers could not be had, or had to be killed."""
        try:
            self._listener = _listen(self._settings.host, self._settings.port)
        except OSError as error:
            logger.error("cannot listen on %s port %d: %s", self._settings.host, self._settings.port, error)
            return False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda got, _: self._signals.append(got))
        with self._listener, tempfile.TemporaryDirectory(prefix="tritonpose-metrics-") as folder:
            os.environ[VARIABLE] = folder
            self._files = MetricFiles(Path(folder))
            self._fill()
            announce(self._settings, self._listener.getsockname()[1])
            while self._workers or self._ending is None:
                self._step()
        return self._started and self._orderly

    def _step(self) -> None:
        wait([*(one.pipe for one in self._workers), *(one.process.sentinel for one in self._workers)], _PAUSE)
        for worker in self._workers:
            self._hear(worker)
        for worker in [one for one in self._workers if one.process.exitcode is not None]:
            self._bury(worker)
        self._files.settle()
        while self._signals:
            self._obey(self._signals.popleft())
        if self._ending is not None:
            if self._workers and time.monotonic() > self._ending:
                self._orderly = False
                self._kill("does not end")
            return
        for worker in self._workers:
            silent = time.monotonic() - worker.heard
            if silent > self._patience(worker):
                logger.error("worker %d (process %d) is silent for %.0f s", worker.number, worker.process.pid, silent)
                worker.end = "hung"
                worker.heard = time.monotonic()
                worker.process.kill()
        self._fill()
        self._open()
        self._replace()

    def _patience(self, worker: _Worker) -> float:
        """Seconds without a word after which a worker counts as hung."""
        if worker.state == "imports":
            return _START_SECONDS
        # Beats end before the process does.
        return self._settings.worker_silence_seconds if not worker.retired else self._last_seconds()

    def _last_seconds(self) -> float:
        return self._settings.drain_seconds + self._settings.shutdown_seconds + _MARGIN_SECONDS

    def _hear(self, worker: _Worker) -> None:
        try:
            while worker.pipe.poll():
                word = worker.pipe.recv_bytes()
                worker.heard = time.monotonic()
                self._started = True
                if word == RETIRING:
                    worker.end, worker.retired = "restarted", True
                else:
                    worker.state = word.decode()
        except (EOFError, OSError):
            pass  # it ends, and is buried when it has

    def _bury(self, worker: _Worker) -> None:
        code, pid = worker.process.exitcode, worker.process.pid
        self._workers.remove(worker)
        worker.pipe.close()
        worker.process.close()
        for successor in self._workers:
            if successor.replaces is worker and successor.open:
                successor.replaces = None
        assert pid is not None
        self._files.retire(pid)
        if self._ending is not None:
            return
        if worker.state == "imports" and not self._started:
            logger.error("worker %d ended with %s before it served: so would the next", worker.number, code)
            self._orderly = False
            self._end()
            return
        if worker.end == "restarted" and code != 0:
            worker.end = "died"  # in the middle of it
        level = logging.INFO if worker.end == "restarted" else logging.ERROR
        logger.log(level, "worker %d (process %d) %s, exit code %s", worker.number, pid, worker.end, code)
        self._files.count(WORKER_ENDS, WORKER_ENDS_TEXT, reason=worker.end)
        if worker.replaces is not None and not worker.open:
            logger.error("the restart ends here: the others go on as they are")
            self._to_replace.clear()
        elif worker.end != "restarted":
            # At once where it had been well; later and later where workers come to nothing.
            self._failures = 0 if worker.state == "ready" else self._failures + 1
            delay = min(_MAX_DELAY, 0.5 * 2**self._failures) if self._failures else 0.0
            self._not_before = time.monotonic() + delay

    def _obey(self, number: int) -> None:
        if number == signal.SIGHUP:
            if self._ending is None:
                logger.info("restarting %d workers", len(self._workers))
                self._to_replace = deque(one for one in self._workers if not one.retired)
        elif self._ending is None:
            self._end()
        else:
            self._orderly = False
            self._kill("is killed by a second signal")

    def _end(self) -> None:
        self._ending = time.monotonic() + self._last_seconds()
        for worker in self._workers:
            if worker.open:
                worker.tell(DRAIN)
            else:
                worker.process.kill()  # it has no request yet, and may take seconds to hear

    def _kill(self, why: str) -> None:
        for worker in self._workers:
            logger.error("worker %d (process %d) %s", worker.number, worker.process.pid, why)
            worker.process.kill()
            worker.process.join()

    def _fill(self) -> None:
        """Start what is missing."""
        there = {one.number for one in self._workers if not one.retired}
        if time.monotonic() >= self._not_before:
            for number in range(self._settings.workers):
                if number not in there:
                    self._start(number)

    def _start(self, number: int, replaces: _Worker | None = None) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(self._share, self._listener, theirs), name=f"tritonpose worker {number}"
        )
        process.start()
        theirs.close()
        self._workers.append(_Worker(number, process, ours, replaces))

    def _open(self) -> None:
        """Let a worker take connections: one that is ready, or the first of all."""
        opened = [one for one in self._workers if one.open and not one.retired]
        for worker in self._workers:
            if worker.open or worker.retired or worker.state == "imports":
                continue
            if not opened or (worker.state == "ready" and all(one.state != "starting" for one in opened)):
                worker.tell(OPEN)
                worker.open = True
                opened.append(worker)
                if worker.replaces in self._workers:
                    worker.replaces.end, worker.replaces.retired = "restarted", True
                    worker.replaces.tell(RETIRE)

    def _replace(self) -> None:
        """Start the next replacement when the one before has taken over and its predecessor has gone."""
        if any(one.replaces in self._workers or (one.replaces and not one.open) for one in self._workers):
            return
        while self._to_replace:
            worker = self._to_replace.popleft()
            if worker in self._workers:
                self._start(worker.number, worker)
                return


def share(settings: Settings) -> Settings:
    """One worker's settings: the cores are divided among all, unless a number of threads was given."""
    each = max(1, available_cores() // settings.workers)
    given: dict[str, object] = {"threads": settings.threads or each}
    if "cpu_threads" not in settings.model_fields_set:
        given["cpu_threads"] = max(2, each)
    return settings.model_copy(update=given)


def _work(settings: Settings, listener: socket.socket, pipe: Connection) -> None:
    from service.worker import work  # the application and its libraries: the supervisor does without

    work(settings, listener, pipe)


def _listen(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
