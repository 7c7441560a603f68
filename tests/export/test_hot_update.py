"""Updating models under load, through the whole service: real exports, a real process, both engines.

Whoever posts meanwhile must get an answer every time, and every answer must be wholly the old models' or wholly the
new ones': crop size, skeleton, thresholds and networks belong together.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from rich.console import Console

from deploy.triton.installation import Installation
from deploy.triton.server import TritonServer
from service.scenes import render_scene
from tests.service.marked_people import encode

pytest.importorskip("torch")
from export.installation import ExportRequest, run_export
from export.plans import PlanOptions
from export.repository import next_version, publish, staging_folder
from tests.export.conftest import pose_recipe, random_pose_network, write_checkpoint

pytestmark = pytest.mark.slow

SCENE = render_scene(7, people=3)
BOXES = [[float(v) for v in (*p.box[:2], *(p.box[2:] - p.box[:2]))] for p in SCENE.people]
BODY = {"images": [{"id": 1, "data": base64.b64encode(encode(SCENE.image, ".jpg")).decode(), "boxes": BOXES}]}
CLIENTS = 4


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, detector_checkpoint: Path) -> dict[int, Path]:
    """What `python -m export` makes of checkpoints of random weights, each in a repository of its own.

    2 has other weights than 1; 3 other crops, another skeleton and another threshold.
    """

    def run(seed: int, options: PlanOptions, *more: Path, **recipe: Any) -> Path:
        read = pose_recipe(**recipe)
        weights = random_pose_network(read, seed).state_dict()
        path = write_checkpoint(tmp_path_factory.mktemp("pose"), "pose", read.model_dump(mode="json"), weights)
        repository = tmp_path_factory.mktemp("exported") / "models"
        run_export(ExportRequest((path, *more), repository, options, check_count=8), Console(quiet=True))
        return repository

    return {
        1: run(1, PlanOptions(), detector_checkpoint, presets=["coco17"]),
        2: run(2, PlanOptions(), presets=["coco17"]),
        3: run(3, PlanOptions(score_threshold=0.4), presets=["lsp14"], width=96, height=96),
    }


def publish_models(made: Path, repository: Path) -> None:
    """As the end of an export does it: the next version, from a staging folder into the repository."""
    names = sorted(path.name for path in made.iterdir())
    with staging_folder(repository) as staged:
        for name in names:
            shutil.copytree(made / name, staged / name)
            (staged / name / "1").rename(staged / name / str(next_version(repository, names)))
        publish(staged, repository, keep=2)


@pytest.fixture
def repository(tmp_path: Path, exported: dict[int, Path]) -> Path:
    """A detector, and version 1 of the pose models."""
    return Path(shutil.copytree(exported[1], tmp_path / "models"))


@contextlib.contextmanager
def serving(**variables: str) -> Iterator[str]:
    """The service in a process of its own; its address once it is ready."""
    named = {f"TRITONPOSE_{name.upper()}": value for name, value in variables.items()}
    command = [sys.executable, "-m", "service", "serve", "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **named}
    )
    assert process.stdout is not None
    assert process.stderr is not None
    log: list[str] = []
    reader = threading.Thread(target=lambda: log.extend(process.stderr or ()), daemon=True)
    try:
        address = ""
        for line in process.stdout:
            if found := re.search(r"curl .*(http://\S+)/v1/pose", line):
                address = found.group(1)
                break
        reader.start()
        assert address, log
        wait_for(lambda: httpx.get(f"{address}/v1/health/ready").status_code == 200, 120)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
            if reader.ident:
                reader.join(10)
            process.stderr.close()


@pytest.fixture(params=["embedded", "triton"])
def address(request: pytest.FixtureRequest, repository: Path) -> Iterator[str]:
    """The service over the repository, with either engine; Triton looks for new models every second."""
    if request.param == "embedded":
        with serving(repository=str(repository), reload_seconds="0.3") as address:
            yield address
        return
    installation: Installation = request.getfixturevalue("triton_installation")
    with TritonServer(repository, control="poll", installation=installation) as server:
        with serving(engine="triton", triton_url=server.grpc_url) as address:
            yield address


@dataclass
class Load:
    """Clients that post until they are told to stop.

    Attributes:
        answers: documents, in the order in which they came.
        failures: status and text of everything else.
    """

    address: str
    answers: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def running(self) -> Iterator[Load]:
        stop = threading.Event()

        def client() -> None:
            with httpx.Client(base_url=self.address, timeout=60) as connection:
                while not stop.is_set():
                    response = connection.post("/v1/pose", json=BODY)
                    if response.status_code == 200:
                        self.answers.append(response.json())
                    else:
                        self.failures.append(f"{response.status_code}: {response.text}")

        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = [pool.submit(client) for _ in range(CLIENTS)]
            try:
                yield self
            finally:
                stop.set()
        for one in clients:
            one.result()

    def version(self) -> int:
        return int(self.answers[-1]["info"]["model_version"]) if self.answers else 0


def wait_for(true: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def ask(address: str) -> dict[str, Any]:
    response = httpx.post(f"{address}/v1/pose", json=BODY, timeout=60)
    assert response.status_code == 200, response.text
    return dict(response.json())


def joints(answer: dict[str, Any]) -> Any:
    return np.array([one["keypoints"] for one in answer["annotations"]], float)


def same(answer: dict[str, Any], other: dict[str, Any]) -> bool:
    """The same joints to a tenth of a pixel, the same skeleton, threshold and version."""
    a, b = joints(answer), joints(other)
    info = answer["info"] == other["info"] and answer["categories"] == other["categories"]
    return info and a.shape == b.shape and bool(np.abs(a - b).max() < 0.1)


def test_every_request_gets_an_answer_of_one_version(address: str, repository: Path, exported: dict[int, Path]) -> None:
    expected = {1: ask(address)}
    load = Load(address)
    with load.running():
        wait_for(lambda: len(load.answers) > 5)
        publish_models(exported[2], repository)
        wait_for(lambda: load.version() == 2)
        expected[2] = ask(address)
        publish_models(exported[3], repository)
        wait_for(lambda: load.version() == 3)
        expected[3] = ask(address)
    assert load.failures == []
    assert np.abs(joints(expected[1]) - joints(expected[2])).max() > 5, "the versions could not be told apart"
    assert len(expected[3]["categories"][0]["keypoints"]) == 14
    assert expected[3]["info"]["score_threshold"] == 0.4
    for answer in load.answers:
        assert same(answer, expected[answer["info"]["model_version"]])
    assert {answer["info"]["model_version"] for answer in load.answers} == {1, 2, 3}


def test_a_broken_version_is_refused_and_the_old_one_goes_on(address: str, repository: Path) -> None:
    expected = ask(address)
    load = Load(address)
    with load.running():
        wait_for(lambda: len(load.answers) > 5)
        made = repository.parent / "made"
        made.mkdir()
        (made / "model.onnx").write_bytes((repository / "pose_heads/1/model.onnx").read_bytes()[:5000])
        made.rename(repository / "pose_heads" / "2")
        wait_for(lambda: "refused_update" in httpx.get(f"{address}/v1/models").json())
        if "embedded" in httpx.get(f"{address}/v1/health/ready").text:
            told = r"pose_heads/2/model\.onnx: ONNX Runtime cannot load it"
        else:
            told = r"pose_heads version 2: .*ONNX Runtime cannot load \S*pose_heads/2/model\.onnx"
        end = time.monotonic() + 8  # Triton tries it again each second: the service must not call that a cure
        while time.monotonic() < end:
            for path in ("models", "health/ready"):
                assert re.search(told, httpx.get(f"{address}/v1/{path}").json().get("refused_update", "not refused"))
            time.sleep(0.2)
        metrics = httpx.get(f"{address}/metrics").text
        assert "tritonpose_update_refused 1.0" in metrics
        assert 'tritonpose_updates_total{outcome="refused"} 1.0' in metrics
        count = len(load.answers)
        wait_for(lambda: len(load.answers) > count + 10)
    assert load.failures == []
    assert all(same(answer, expected) for answer in load.answers)
    assert httpx.get(f"{address}/v1/health/ready").status_code == 200
