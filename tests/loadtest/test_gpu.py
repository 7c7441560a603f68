"""The measurement on a GPU, as far as it goes without one: what is missing, what is measured, how it is told.

``nvidia-smi`` is played by a script that prints what NVIDIA's prints; Triton and the networks are real, on the CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.triton.installation import ENVIRONMENT, GPU_ENVIRONMENT, Installation, TritonMissing, find_installation
from deploy.triton.server import TritonServer
from loadtest.closed_loop import Outcome
from loadtest.gpu import Row, look_around, measure, server_version, table
from loadtest.nvidia import Gpu, NoGpu, Utilisation, find_gpus
from tests.conftest import ROOT

SMI = """#!/bin/sh
case "$*" in
  *utilization.gpu*) while true; do echo "40, 1000"; sleep 0.05; echo "60, 1200"; sleep 0.05; done ;;
  *) echo "NVIDIA L4, 580.95.05, 23034, 8.9"; echo "NVIDIA L4, 580.95.05, 23034, 8.9" ;;
esac
"""


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """``smi(text)``: from now on ``nvidia-smi`` is that script, and the first on the PATH."""

    def install(text: str) -> None:
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")

    return install


def test_gpus_are_those_of_the_driver(smi: Callable[[str], None]) -> None:
    smi(SMI)
    assert find_gpus() == [Gpu("NVIDIA L4", "580.95.05", 23034, "8.9")] * 2
    smi('#!/bin/sh\necho "Failed to initialize NVML: Driver/library version mismatch"; exit 18\n')
    with pytest.raises(NoGpu, match="ended with 18: Failed to initialize NVML: Driver"):
        find_gpus()
    smi("#!/bin/sh\n")
    with pytest.raises(NoGpu, match="lists none"):
        find_gpus()


def test_a_machine_without_a_driver_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoGpu, match="no NVIDIA driver: there is no nvidia-smi"):
        find_gpus()


def test_share_is_the_mean_of_what_was_sampled(smi: Callable[[str], None]) -> None:
    smi(SMI)
    with Utilisation(0) as utilisation:
        end = time.monotonic() + 20
        while len(utilisation.shares) < 6 and time.monotonic() < end:
            time.sleep(0.02)
    assert set(utilisation.shares) == {40, 60} and set(utilisation.memory_mib) == {1000, 1200}
    assert utilisation.share is not None and 40 < utilisation.share < 60
    count = len(utilisation.shares)
    time.sleep(0.2)
    assert len(utilisation.shares) == count, "the program has ended"
    smi('#!/bin/sh\necho "[N/A], [N/A]"\n')
    with Utilisation(0) as utilisation:
        time.sleep(0.2)
    assert utilisation.share is None


def test_everything_that_is_missing_is_named_with_the_way_to_it(
    smi: Callable[[str], None], triton_installation: Installation, repository: Path, tmp_path: Path
) -> None:
    smi(SMI)
    setup, missing = look_around(repository, triton_installation.environment, 0)
    assert setup is None and len(missing) == 1
    assert "no CUDA in ONNX Runtime" in missing[0] and missing[0].endswith("is one without CUDA")
    _, missing = look_around(repository, triton_installation.environment, 2)
    assert missing[0] == "no GPU 2: there are 2"
    smi("#!/bin/sh\nexit 9\n")
    setup, missing = look_around(tmp_path, tmp_path / "nothing", 0)
    assert setup is None and len(missing) == 3
    for words, told in zip(
        ("nvidia-smi ended with 9", "no MODEL/VERSION/model.onnx", "environment.py"), missing, strict=True
    ):
        assert words in told


def test_the_missing_environment_is_the_one_with_cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("deploy.triton.installation.GPU_ENVIRONMENT", tmp_path / "triton-gpu")
    with pytest.raises(TritonMissing, match=r"environment\.py triton-gpu$"):
        find_installation(tmp_path / "triton-gpu")
    assert (GPU_ENVIRONMENT.name, ENVIRONMENT.name) == ("triton-gpu", "triton")


def test_command_without_a_gpu_says_so_and_ends_with_2(triton_installation: Installation, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loadtest.gpu", "--environment", str(triton_installation.environment)]
    path = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2, done.stderr
    missing = json.loads(done.stdout.splitlines()[-1])["missing"]
    assert len(missing) == 2 and all(f"missing: {what}" in done.stderr for what in missing)


def test_a_row_is_told_in_the_units_of_its_heading() -> None:
    outcome = Outcome(rate=12.5, posted=100, latencies=[0.01 * k for k in range(1, 101)])
    lines = table([Row(20, "gateway", 16, outcome, 63.04), Row(1, "Triton alone", 1, Outcome(), None)]).splitlines()
    assert lines[2] == "| 20 | gateway | 16 | 12.5 | 250.0 | 505.0 | 990.1 | 63.0 |"
    assert lines[3] == "| 1 | Triton alone | 1 | 0.0 | 0.0 |  |  |  |"
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")


@pytest.mark.slow
def test_each_picture_is_posed_with_so_many_people(
    smi: Callable[[str], None], triton_installation: Installation, repository: Path
) -> None:
    smi(SMI)
    with TritonServer(repository, installation=triton_installation) as server:
        assert server_version(server).startswith("2.")
        rows, same = measure(server, [1, 3], [2], seconds=0.4, pictures=2)
    assert same == 4
    assert [(row.people, row.through) for row in rows] == [
        (1, "gateway"),
        (1, "Triton alone"),
        (3, "gateway"),
        (3, "Triton alone"),
    ]
    for row in rows:
        told = row.as_json()
        assert told["images_per_second"] > 0 and 0 < told["p50_ms"] <= told["p99_ms"]
        assert told["people_per_second"] == pytest.approx(row.people * told["images_per_second"], rel=0.01)
        assert 40 <= told["gpu_share"] <= 60
