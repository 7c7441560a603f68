"""If these fail, a full disk or a kill costs days of training."""

from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from torch import nn

import training.run as run_module
from training.run import Ema, Run, RunError


class _Recipe(BaseModel):
    steps: int = 3


class _FullDisk(io.FileIO):
    """Takes a thousand bytes, then the disk is full."""

    def write(self, content: Any, /) -> int:
        super().write(memoryview(content)[:1000])
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_named_and_the_last_checkpoint_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "run", _Recipe(), resume=False)
    run.save({"step": 7, "weights": torch.ones(1000)})
    monkeypatch.setattr(Path, "open", lambda self, mode: _FullDisk(str(self), mode))
    with pytest.raises(RunError, match=r"last\.pt.*No space left on device; the previous one is intact"):
        run.save({"step": 8, "weights": torch.zeros(1000)})
    with pytest.raises(RunError, match=r"model\.pt.*No space left.*there is no previous one"):
        run.finish("pose", {"w": torch.zeros(1000)}, {})
    monkeypatch.undo()
    run.close()
    assert not list((tmp_path / "run").glob("*.partial"))
    state = Run(tmp_path / "run", _Recipe(), resume=True, write=False).load()
    assert state is not None
    assert state["step"] == 7


def test_a_stop_in_the_middle_of_a_write_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after the last byte, before the new file has its name."""
    run = Run(tmp_path / "run", _Recipe(), resume=False)
    run.save({"step": 1})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run.save({"step": 2})
    monkeypatch.undo()
    run.close()
    loaded = Run(tmp_path / "run", _Recipe(), resume=True, write=False).load()
    assert loaded is not None
    assert loaded["step"] == 1


def test_bytes_are_on_the_disk_before_the_old_file_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(run_module.os, name)
        monkeypatch.setattr(run_module.os, name, lambda *a, n=name, r=real: (order.append(n), r(*a))[1])
    run_module.write_durably(tmp_path / "x", b"content")
    assert order == ["fsync", "replace", "fsync"]
    assert (tmp_path / "x").read_bytes() == b"content"


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"half a checkpoint")
    with pytest.raises(RunError, match=r"last\.pt: not a checkpoint"):
        Run(tmp_path, _Recipe(), resume=True, write=False).load()


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/run: no folder for a run"):
        Run(tmp_path / "file" / "run", _Recipe(), resume=False)


def test_the_average_is_the_closed_form() -> None:
    """Of weights and of batch statistics; the early steps forget the start faster."""
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = Ema(network, 0.9)
    expected = {k: v.double() for k, v in network.state_dict().items()}
    for step in range(1, 12):
        with torch.no_grad():
            for value in network.state_dict().values():
                value.add_(step)
        average.update(network, step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            expected[name] = expected[name] * decay + value.double() * (1 - decay)
    for name, value in average.state.items():
        if name.endswith("num_batches_tracked"):
            assert value == network.state_dict()[name]
        else:
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-5)
