"""The tritonserver without docker: it serves the shipped repository, ends in order, and comes back.

Were these to fail, `make triton` would start nothing, leave processes behind, or not say why.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from deploy.triton.installation import Installation, TritonMissing, find_installation
from deploy.triton.server import TritonFailed, TritonServer
from tests.conftest import ROOT

SHARED_MEMORY = Path("/dev/shm")


def children(pid: int) -> list[int]:
    """Process ids of a process's children."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.append(int(folder.name))
    return found


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def regions(server: TritonServer) -> list[Path]:
    """Of this server: others may run beside it."""
    return list(SHARED_MEMORY.glob(f"*{server._prefix}*"))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository of one small model of the shipped one."""
    repository = tmp_path / "a repository's place"  # Triton itself takes neither blanks nor quotes
    shutil.copytree(ROOT / "model_repository" / "pose_mirror", repository / "pose_mirror")
    return repository


@pytest.mark.slow
def test_server_that_was_killed_leaves_nothing_and_comes_back(triton_installation: Installation, small: Path) -> None:
    with TritonServer(small, installation=triton_installation) as server:
        assert server.ready() and server.pid is not None
        ports, first, helpers = server.ports, server.pid, children(server.pid)
        assert helpers and regions(server)
        server.kill()
        assert not server.running and not server.ready()
        end = time.monotonic() + 10
        while not all(gone(pid) for pid in (first, *helpers)) and time.monotonic() < end:
            time.sleep(0.05)
        assert all(gone(pid) for pid in (first, *helpers))
        assert not regions(server)
        server.start()
        assert server.ready() and server.ports == ports and server.pid not in (None, first)
        helpers = children(server.pid or 0)
        assert server.stop() == 0
        assert all(gone(pid) for pid in helpers) and not regions(server)


@pytest.mark.slow
def test_server_outlives_the_thread_that_started_it(triton_installation: Installation, small: Path) -> None:
    """It is to end with its parent, and Linux means the parent's thread by that."""
    server = TritonServer(small, installation=triton_installation)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join(120)
    try:
        time.sleep(1)
        assert server.running and server.ready()
    finally:
        server.close()


@pytest.mark.slow
def test_model_that_cannot_be_loaded_is_named(triton_installation: Installation, small: Path) -> None:
    config = small / "pose_mirror" / "config.pbtxt"
    config.write_text(config.read_text().replace("dims: 192", "dims: 200"))
    with pytest.raises(TritonFailed) as failure, TritonServer(small, installation=triton_installation):
        pass
    assert "'pose_mirror'" in str(failure.value) and "200" in str(failure.value) and "192" in str(failure.value)


@pytest.mark.slow
def test_server_ends_when_it_is_not_ready_in_time(triton_installation: Installation, small: Path) -> None:
    server = TritonServer(small, installation=triton_installation, start_seconds=0.01)
    with pytest.raises(TritonFailed, match=r"not ready after 0\.01 s"):
        server.start()
    assert not server.running
    server.close()


def test_missing_pieces_are_named(tmp_path: Path) -> None:
    with pytest.raises(TritonMissing, match=r"environment\.py triton"):
        find_installation(tmp_path)
    with pytest.raises(NotADirectoryError, match="nowhere"):
        TritonServer(tmp_path / "nowhere")


def test_server_listens_on_loopback_only(triton_installation: Installation, small: Path, tmp_path: Path) -> None:
    server = TritonServer(small, installation=triton_installation, log=tmp_path / "log")
    command = server._command()
    for protocol in ("http", "grpc", "metrics"):
        assert f"--{protocol}-address=127.0.0.1" in command
    assert os.access(triton_installation.program, os.X_OK)
    server.close()
