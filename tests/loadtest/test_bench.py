"""``make bench`` and ``make loadtest`` as they are run, over the stand-in models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from loadtest.bound import Bound
from loadtest.pictures import rendered_pictures
from loadtest.server import ServiceProcess

pytestmark = pytest.mark.slow  # every test starts processes

ROOT = Path(__file__).resolve().parents[2]
LOCUST = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless", "--only-summary"]


def run(command: list[str], repository: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITONPOSE_REPOSITORY": str(repository)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=400)


def test_the_bound_runs_the_calls_the_pipeline_makes(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One detector run, one of the heads and one of the fusion for each picture; all people in one of them."""
    monkeypatch.setenv("TRITONPOSE_REPOSITORY", str(repository))
    pictures = [picture.data for picture in rendered_pictures(2, 1, size=(160, 120))]
    with Bound(pictures, {}) as bound:
        assert bound.recording.people == [3, 3]
        assert bound.recording.calls == [3, 3]
        assert bound.recording.rows == [3, 3]
        speed, done = bound.run(0.3)
        assert speed > 1
        assert done >= 2
    with Bound(pictures, {"max_people": "2", "flip": "true"}) as fewer:
        assert fewer.recording.rows == [2, 2]


def test_a_bound_that_cannot_be_recorded_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONPOSE_REPOSITORY", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"holds no <name>/config\.pbtxt"):
        with Bound([b""], {}):
            pass


def test_the_bench_ends_with_one_line_of_json(repository: Path) -> None:
    command = [sys.executable, "-m", "loadtest.bench", "--seconds", "0.5", "--rounds", "2", "--pictures", "3"]
    done = run([*command, "--size", "160", "120"], repository)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["ratio"] == pytest.approx(np.median(summary["ratios"]), abs=1e-3)
    assert 0 < summary["ratio"] < 1.2
    assert summary["wrong"] == 0
    assert summary["answers"] > 0
    assert (summary["clients"], summary["single_people"]) == (4, 3)
    assert summary["p50_ms"] <= summary["p95_ms"] <= summary["p99_ms"]
    assert "pictures/s" in done.stdout
    if Path("/proc/self/stat").exists():
        assert summary["service_cpu_ms"] > 0
        assert summary["bound_cpu_ms"] > 0


def test_the_bench_fails_below_the_ratio_asked_for(repository: Path) -> None:
    command = [sys.executable, "-m", "loadtest.bench", "--seconds", "0.3", "--rounds", "1", "--pictures", "2"]
    done = run([*command, "--size", "160", "120", "--least-ratio", "50"], repository)
    assert done.returncode == 1
    assert json.loads(done.stdout.splitlines()[-1])["ratio"] < 50


def test_locust_passes_over_a_right_service(service: ServiceProcess, repository: Path) -> None:
    command = [
        *LOCUST,
        "--host",
        service.url,
        "--users",
        "2",
        "--spawn-rate",
        "2",
        "--run-time",
        "6s",
        "--pictures",
        "3",
    ]
    done = run(command, repository)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 wrong or failed" in done.stderr
    assert "drawn people found" in done.stderr
    for mix in ("coco", "format=results", "flip=true", "fusion=1,0,0", "max_people=2"):
        assert mix in done.stderr


def test_locust_fails_when_it_is_slower_than_allowed(service: ServiceProcess, repository: Path) -> None:
    command = [
        *LOCUST,
        "--host",
        service.url,
        "--users",
        "1",
        "--run-time",
        "4s",
        "--pictures",
        "1",
        "--max-p95",
        "0.1",
    ]
    done = run(command, repository)
    assert done.returncode == 1
    assert "allowed are 0" in done.stderr


def test_locust_tells_when_nobody_answers(repository: Path) -> None:
    done = run(
        [*LOCUST, "--host", "http://127.0.0.1:9", "--users", "1", "--run-time", "30s", "--pictures", "1"], repository
    )
    assert done.returncode == 2
    assert "the load cannot begin" in done.stderr
