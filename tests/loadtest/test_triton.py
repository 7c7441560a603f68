"""The measurements on Triton, over a real tritonserver and the stand-in models.

Were these to fail, the figures of docs/triton.md could no longer be had, or would be those of other work.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploy.triton.installation import Installation
from deploy.triton.server import TritonServer
from loadtest.outage import Outage, Probe, run_outage
from loadtest.pictures import rendered_pictures
from loadtest.triton import _tree_cpu
from loadtest.triton_alone import Recording, TritonAlone, record
from tests.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(triton_installation: Installation, repository: Path) -> Iterator[TritonServer]:
    with TritonServer(repository, installation=triton_installation) as server:
        yield server


@pytest.fixture(scope="module")
def recording(server: TritonServer) -> Recording:
    pictures = [picture.data for picture in rendered_pictures(2, 1, size=(160, 120))]
    return record(server.grpc_url, pictures, {"max_people": "2"})


def test_what_is_replayed_is_what_the_gateway_sends(recording: Recording) -> None:
    """One detector call and one pose call with all crops for each picture."""
    assert recording.people == recording.crops == [2, 2]
    assert [[call.model for call in calls] for calls in recording.calls] == [["person_detector", "pose"]] * 2
    assert recording.calls[0][1].inputs["crops"].dtype == np.uint8


@pytest.mark.parametrize("shared", [True, False])
def test_replay_gets_the_recorded_answers(server: TritonServer, recording: Recording, shared: bool) -> None:
    with TritonAlone(server.grpc_url, recording, shared=shared) as alone:
        assert alone.shared == shared
        outcome = alone.run(2, 0.5, lead_in=0.1)
    assert outcome.failures == []
    assert outcome.rate > 1 and outcome.posted >= 4


def test_replay_notices_wrong_answers(server: TritonServer, recording: Recording) -> None:
    moved = [
        [replace(call, outputs={name: array + 3 for name, array in call.outputs.items()}) for call in calls]
        for calls in recording.calls
    ]
    with TritonAlone(server.grpc_url, replace(recording, calls=moved)) as alone:
        failures = alone.run(1, 0.2, lead_in=0.0).failures
    assert "pose: keypoints differs by 3.000" in failures


def test_command_ends_with_one_line_of_json(server: TritonServer, repository: Path) -> None:
    command = [sys.executable, "-m", "loadtest.triton", "--triton-url", server.grpc_url, "--seconds", "0.4"]
    command += ["--rounds", "2", "--pictures", "2", "--people", "1", "--concurrency", "1", "--concurrency", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert [run["concurrency"] for run in summary["runs"]] == [1, 3]
    for run in summary["runs"]:
        assert run["ratio"] == pytest.approx(np.median(run["ratios"]), abs=1e-3)
        assert 0 < run["ratio"] < 1.5
        assert run["gateway"]["answers"] > 0 and run["triton"]["p99_ms"] > 0
        assert run["cpu_ratio"] is None  # the Triton of --triton-url may have other callers
    assert summary["wrong"] == 0


def test_cpu_time_of_a_process_and_its_children() -> None:
    """Half a second of work in a child is seen from its parent's process id."""
    work = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    child = "import time, sys; [None for _ in iter(lambda: time.process_time() < 0.5, False)]; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", work, child], stdin=subprocess.PIPE) as process:
        end = time.monotonic() + 60
        while (used := _tree_cpu([process.pid])) is None or used < 0.5:
            assert time.monotonic() < end, used
            time.sleep(0.05)
        process.communicate()
    assert _tree_cpu([process.pid, None]) is None


def test_kill_under_load_gives_only_503_and_ends_by_itself(triton_installation: Installation, repository: Path) -> None:
    outage = run_outage(repository, users=2, before=3, away=2, after=8)
    assert outage.wrong == [] and set(outage.statuses) == {200, 503}, outage.as_json()
    assert outage.locust["refused_503"] > 0 and outage.locust["other_failures"] == 0
    assert outage.recovery is not None and outage.recovery < 5, outage.as_json()
    assert outage.slowest_refusal < 2, outage.as_json()  # a second is asked for; CI's machines do other things too


def test_figures_of_an_outage() -> None:
    """Killed at 10, ready again at 15: 503s until 16, then good answers."""
    probes = [
        Probe(9.0, 9.1, 200, None),
        Probe(9.9, 10.3, 503, None),  # under way when it was killed: 0.3 s
        Probe(12.0, 12.5, 503, None),
        Probe(15.9, 16.0, 503, None),
        Probe(16.1, 16.4, 200, "a joint 3 px away"),
        Probe(17.0, 17.1, 200, None),
    ]
    outage = Outage(probes, killed=10.0, returned=15.0, locust={})
    assert outage.slowest_refusal == pytest.approx(0.5)
    assert outage.recovery == pytest.approx(1.4)
    assert outage.wrong == ["a joint 3 px away"]
    assert Outage(probes[:4], killed=10.0, returned=15.0, locust={}).recovery is None
