"""The measuring commands as they are run, short, over the stand-in models: their figures go into docs and verdicts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtest.agreement import disagreement
from loadtest.cases import learn
from loadtest.chaos import add_version
from loadtest.own_time import own_seconds, stages
from loadtest.peers.__main__ import Served, measure, running
from loadtest.peers.pipeline import PeerPipeline
from loadtest.pictures import rendered_pictures
from loadtest.server import ServiceProcess
from service.client import PoseClient
from tests.conftest import ROOT
from tests.loadtest.stand_in import write_repository


def run(repository: Path, module: str, *options: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, the JSON of the last line, and all that was printed."""
    environment = {**os.environ, "TRITONPOSE_REPOSITORY": str(repository)}
    command = [sys.executable, "-m", f"loadtest.{module}", *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=580)
    assert done.stdout, done.stderr[-4000:]
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr


@pytest.mark.slow
def test_overload(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONPOSE_MAX_WAITING", "4")  # full at once, on slow machines too
    short = ["--seconds", "1.5", "--rounds", "1", "--clients", "2", "--pictures", "2", "--times", "4", "--people", "1"]
    out = tmp_path / "a" / "overload.json"
    # How fast a refusal is on a machine that tests is not asked here: the figures are, and that nothing went wrong.
    kind = ["--most-refusal-ms", "60000", "--least-goodput", "0", "--out", str(out)]
    code, told, printed = run(repository, "overload", *short, *kind)
    assert code == 0, printed
    assert told["peak"] > 0 and told["offered"] == pytest.approx(4 * told["peak"], rel=0.01)
    assert set(told["statuses"]) <= {"200", "429"} and told["wrong"] == told["server_errors"] == 0
    assert 0 < told["client_cpu_ms"] < 50
    assert json.loads(out.read_text()) == told
    code, told, _ = run(repository, "overload", *short, "--least-goodput", "9")
    assert code == 1 and any("goodput" in limit for limit in told["broken"])


def test_own_time_is_what_is_left_of_the_total() -> None:
    header = "read;dur=1.00, decode;dur=2.00, detector;dur=10.00, crop;dur=3.00, pose;dur=20.00, total;dur=37.50"
    assert own_seconds(stages(header)) == pytest.approx(2.5e-3)
    with pytest.raises(ValueError, match="crop"):
        stages("decode;dur=2.00, detector;dur=10.00, pose;dur=20.00, total;dur=37.50")


@pytest.mark.slow
def test_own_time(service: ServiceProcess, repository: Path) -> None:
    short = ["--url", service.url, "--requests", "20", "--warm-up", "3", "--pictures", "2"]
    code, told, printed = run(repository, "own_time", *short, "--most-ms", "10000")
    assert code == 0, printed
    assert told["requests"] == 20 and told["wrong"] == 0
    assert 0 < told["own_p50_ms"] < told["total_p50_ms"]
    assert run(repository, "own_time", *short, "--most-ms", "0")[0] == 1


@pytest.mark.slow
def test_chaos(repository: Path) -> None:
    """Two workers, of which one is killed twice, and a new version of the detector between."""
    code, told, printed = run(repository, "chaos", "--requests", "300", "--callers", "6", "--pictures", "3")
    assert code == 0, printed
    assert told["requests"] >= 300 and told["hung"] == told["wrong"] == 0
    assert [event.split(" after ")[0] for event in told["events"]] == [
        "a worker is killed",
        "a new version of person_detector",
        "a worker is killed",
    ]
    assert told["outcomes"]["well-behaved: right"] > 30 and told["outcomes"]["impatient: left"] > 0


def test_a_new_version_is_a_copy_of_the_newest(tmp_path: Path) -> None:
    repository = write_repository(tmp_path / "models")
    assert add_version(repository, "pose_heads") == 2
    assert add_version(repository, "pose_heads") == 3
    first, third = (repository / "pose_heads" / version / "model.onnx" for version in "13")
    assert first.read_bytes() == third.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models"]


@pytest.mark.slow
def test_soak_catches_the_planted_leak(repository: Path, tmp_path: Path) -> None:
    picture = tmp_path / "soak.png"
    short = ["--minutes", "0.12", "--control-minutes", "0.12", "--callers", "3", "--pictures", "2"]
    code, told, printed = run(repository, "soak", *short, "--leak", "4000000", "--plot", str(picture))
    assert told["control_growth_mb"] > 50, printed
    assert told["wrong"] == told["hung"] == 0 and told["complaints"] == []
    # Seven seconds are all warm-up: whether the service itself grows takes half an hour to say.
    assert told["growth_mb"] < told["control_growth_mb"] / 2
    assert picture.read_bytes().startswith(b"\x89PNG")
    code, told, _ = run(repository, "soak", *short, "--leak", "4", "--most-growth", "1000")
    assert code == 1 and any("the same check" in limit for limit in told["broken"])  # a leak that it did not catch


@pytest.mark.slow
def test_rolling_restart(repository: Path) -> None:
    short = ["--rounds", "1", "--seconds", "1", "--callers", "3", "--pictures", "2"]
    code, told, printed = run(repository, "rolling", *short)
    assert code == 0, printed
    assert told["failed"] == told["resent"] == 0 and told["exit_codes"] == [0, 0]
    assert told["requests"] > 30


@pytest.mark.slow
def test_campaign(service: ServiceProcess, repository: Path, tmp_path: Path) -> None:
    short = ["--url", service.url, "--seconds", "5", "--steps", "1,2", "--arrivals", "0.3", "--pictures", "2"]
    code, told, printed = run(repository, "campaign", *short, "--report", str(tmp_path))
    assert code == 0, printed
    assert [one["load"] for one in told["points"][:4]] == [4, 10, 1, 2]
    assert all(one["failed"] == 0 and one["rate"] > 0 for one in told["points"])
    names = {path.name for path in tmp_path.iterdir()}
    assert {"curve.png", "curve.svg", "closed.html", "rough.html", "steps_stats.csv", "arrivals_0.3.html"} <= names
    assert "wrong: " in (tmp_path / "rough_stats.csv").read_text()


@pytest.mark.slow
def test_campaign_tells_refusals_from_failures(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many times more than fits in: honest refusals, which are no wrong answers, but too many of them."""
    monkeypatch.setenv("TRITONPOSE_MAX_RUNNING", "1")
    monkeypatch.setenv("TRITONPOSE_MAX_WAITING", "0")
    few = ["--seconds", "4", "--steps", "1", "--arrivals", "10", "--scenarios", "steps,arrivals", "--pictures", "2"]
    code, told, printed = run(repository, "campaign", *few, "--report", str(tmp_path))
    assert code == 1, printed
    assert [limit.split(":")[:2] for limit in told["broken"]] == [["arrivals_10", " refused"]], printed
    crowd = told["points"][-1]
    assert crowd["refused"] > 20 and crowd["failed"] == 0 and crowd["rate"] > 0
    assert "refused" in (tmp_path / "arrivals_10_stats.csv").read_text()


def test_peers_find_the_same_people(service: ServiceProcess, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else they would be measured doing other work."""
    monkeypatch.setenv("TRITONPOSE_REPOSITORY", str(repository))
    monkeypatch.setenv("PEER_MAX_PEOPLE", "2")
    peer = PeerPipeline()
    with PoseClient(service.url) as client:
        for picture in rendered_pictures(2, 2, size=(320, 240)):
            answer = peer(picture.data)
            assert disagreement(client.pose(picture.data, max_people=2), answer) is None
            assert len(answer["annotations"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["FastAPI", "LitServe", "BentoML"])
async def test_peers_answer(
    service: ServiceProcess, repository: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name != "FastAPI" and not (ROOT / ".venv" / f"peer-{name.lower()}" / "fingerprint").is_file():
        pytest.skip(f"{name} is not installed: python scripts/environment.py peer-{name.lower()}")
    monkeypatch.setenv("TRITONPOSE_REPOSITORY", str(repository))
    with PoseClient(service.url) as client:
        cases = learn(client, rendered_pictures(2, 2, size=(320, 240)), [{"max_people": "2"}])
    served = Served(name, 1)
    with running(name, 1, 2, max_people=2) as (url, pid):
        await measure(url, pid, cases, "/v1/pose", clients=2, seconds=1.0, served=served)
    assert served.wrong == [] and served.rates[0] > 0 and served.p99_ms[0] >= served.p50_ms[0] > 0
    assert 0 < served.cpu_ms[0] < 1000 and served.memory_mb[0] > 50
