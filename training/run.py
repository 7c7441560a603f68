"""A training run on disk: checkpoints that survive a kill, curves, and the JSON of how it came to be.

Layout of a run's folder: ``last.pt`` (everything needed to go on), ``model.pt`` (weights that ship) beside
``model.json`` (recipe, data, commit, hardware, duration, metrics), ``curves/`` (TensorBoard events).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import random
import subprocess
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import nn
from torch.utils.tensorboard import SummaryWriter


class RunError(ValueError):
    """A run folder that cannot be used; says why."""


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch. On a CPU, with the same thread count, a run is then repeatable."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class Ema:
    """Exponential moving average of a module's floating-point state (parameters and batch-norm buffers)."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Mix in the module's state; early steps count more, so that the start is soon forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = module.state_dict()
        floats = [name for name, value in current.items() if value.dtype.is_floating_point]
        # All tensors in one call: hundreds of small kernels would take longer than the arithmetic.
        torch._foreach_lerp_([self.state[n] for n in floats], [current[n] for n in floats], 1 - decay)
        for name, value in current.items():
            if not value.dtype.is_floating_point:
                self.state[name].copy_(value)


class Run:
    """One run's folder."""

    def __init__(self, directory: Path, recipe: BaseModel, *, resume: bool, write: bool = True) -> None:
        """Open ``directory``. Without ``resume`` an unfinished run found there is an error, never overwritten.

        ``write`` is false in all but one of the processes that share a run: they only read.
        """
        self.directory = directory
        self.recipe = recipe
        self.started = time.time()
        self.previous_seconds = 0.0
        self._writer: SummaryWriter | None = None
        if not write:
            return
        if not resume and self.checkpoint.exists():
            raise RunError(f"{directory} holds a run already: pass --resume to go on, or name another folder")
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._writer = SummaryWriter(str(directory / "curves"))
        except OSError as error:
            raise RunError(f"{directory}: no folder for a run: {error.strerror or error}") from error

    @property
    def checkpoint(self) -> Path:
        """Where the resumable state lies."""
        return self.directory / "last.pt"

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the resumable state in one atomic step: a kill leaves the previous one.

        Raises:
            RunError: it could not be written (disk full, folder gone); the previous one is still there.
        """
        _write_atomically(self.checkpoint, {**state, "seconds": self.seconds, "torch_rng": torch.get_rng_state()})

    def load(self) -> dict[str, Any] | None:
        """The state of :meth:`save`, None when there is none; restores the torch generator."""
        if not self.checkpoint.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:  # torch has many ways to say that a file is not one of its own
            raise RunError(f"{self.checkpoint}: not a checkpoint that can be read: {error}") from error
        self.previous_seconds = float(state["seconds"])
        torch.set_rng_state(state["torch_rng"])
        return state

    @property
    def seconds(self) -> float:
        """Training time so far, earlier parts of a resumed run included."""
        return self.previous_seconds + time.time() - self.started

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add points to the curves."""
        for name, value in values.items():
            if self._writer:
                self._writer.add_scalar(name, value, step)

    def finish(self, kind: str, weights: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> Path:
        """Write ``model.pt`` (``{"kind", "recipe", "weights"}``) and ``model.json``; returns the former."""
        recipe = self.recipe.model_dump(mode="json")
        path = self.directory / "model.pt"
        if not self._writer:
            return path
        _write_atomically(path, {"kind": kind, "recipe": recipe, "weights": dict(weights)})
        story = {
            "kind": kind,
            "recipe": recipe,
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "hours": round(self.seconds / 3600, 3),
            "commit": _commit(),
            "hardware": _hardware(),
            "torch": torch.__version__,
            "parameters": int(sum(w.numel() for w in weights.values())),
            **facts,
        }
        write_durably(self.directory / "model.json", (json.dumps(story, indent=1) + "\n").encode())
        return path

    def close(self) -> None:
        """Flush the curves."""
        if self._writer:
            self._writer.close()


def _write_atomically(path: Path, value: Mapping[str, Any]) -> None:
    # To memory first: torch writes a file in many parts and tells of a full disk in its own words.
    buffer = io.BytesIO()
    torch.save(dict(value), buffer)
    write_durably(path, buffer.getbuffer())


def write_durably(path: Path, content: bytes | memoryview) -> None:
    """Replace a file so that at any moment, a power cut included, the old or the new one is whole on the disk.

    Raises:
        RunError: it could not be written, with the reason; the old one is still there.
    """
    temporary = path.with_name(path.name + ".partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        # The new name must reach the disk too.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        kept = "the previous one is intact" if path.exists() else "there is no previous one"
        raise RunError(f"{path}: cannot write {len(content):,} bytes: {error.strerror or error}; {kept}") from error


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
        return result.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _hardware() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{torch.get_num_threads()} CPU threads, {platform.machine()}"
