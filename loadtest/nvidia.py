"""What ``nvidia-smi`` tells: which GPUs there are, and what share of the time one is at work."""

from __future__ import annotations

import subprocess
import threading
from dataclasses import dataclass, field
from types import TracebackType

_PROGRAM = "nvidia-smi"
_FORMAT = "--format=csv,noheader,nounits"
_ANSWER_SECONDS = 30
_SAMPLE_MS = 200


class NoGpu(RuntimeError):
    """There is no GPU to measure; the message says what is missing."""


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: NVIDIA's.
        driver: version of the driver.
        memory_mib: of the board.
        capability: compute capability, such as ``9.0``.
    """

    name: str
    driver: str
    memory_mib: int
    capability: str


def find_gpus() -> list[Gpu]:
    """All GPUs that this process may use, in the driver's order. Raises NoGpu."""
    query = "--query-gpu=name,driver_version,memory.total,compute_cap"
    try:
        done = subprocess.run(
            [_PROGRAM, query, _FORMAT], capture_output=True, text=True, check=False, timeout=_ANSWER_SECONDS
        )
    except OSError:
        raise NoGpu(
            f"no NVIDIA driver: there is no {_PROGRAM} on the PATH (containers get it by docker run --gpus all)"
        ) from None
    except subprocess.TimeoutExpired:
        raise NoGpu(f"{_PROGRAM} does not answer within {_ANSWER_SECONDS} s") from None
    if done.returncode:
        raise NoGpu(f"no GPU: {_PROGRAM} ended with {done.returncode}: {(done.stdout + done.stderr).strip()}")
    gpus = []
    for line in done.stdout.strip().splitlines():
        words = [word.strip() for word in line.split(",")]
        if len(words) != 4:
            raise NoGpu(f"{_PROGRAM} says {line!r}, not a name, a driver, a size and a compute capability")
        name, driver, memory, capability = words
        gpus.append(Gpu(name, driver, int(memory) if memory.isdecimal() else 0, capability))
    if not gpus:
        raise NoGpu(f"no GPU: {_PROGRAM} lists none")
    return gpus


@dataclass
class Utilisation:
    """Samples a GPU five times a second for as long as it is entered.

    A context manager. ``share`` is NVIDIA's own "utilization.gpu": of the time between two samples, the percentage in
    which any kernel ran. It does not say how much of the GPU the kernel filled.

    Attributes:
        gpu: its number.
        shares: percentages, in order.
        memory_mib: memory in use, of all its processes, at each sample.
    """

    gpu: int = 0
    shares: list[float] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)

    def __enter__(self) -> Utilisation:
        query = "--query-gpu=utilization.gpu,memory.used"
        command = [_PROGRAM, f"--id={self.gpu}", query, _FORMAT, f"--loop-ms={_SAMPLE_MS}"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    @property
    def share(self) -> float | None:
        """Mean of the samples in per cent; None where there are none (``[N/A]`` on some boards)."""
        return sum(self.shares) / len(self.shares) if self.shares else None

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                share, memory = (float(word) for word in line.split(","))
            except ValueError:
                continue
            self.shares.append(share)
            self.memory_mib.append(memory)
