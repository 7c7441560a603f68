"""The bench's clients against the real service. A client that miscounts or lets errors pass makes the ratio a lie."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from loadtest.closed_loop import ClosedLoop
from loadtest.pictures import LoadPicture, folder_pictures, rendered_pictures
from loadtest.server import ServiceProcess
from service.client import PoseClient


@pytest.fixture(scope="module")
def pictures() -> list[LoadPicture]:
    return rendered_pictures(3, 2, size=(160, 120))


@pytest.fixture(scope="module")
def expected(service: ServiceProcess, pictures: list[LoadPicture]) -> list[Any]:
    with PoseClient(service.url) as client:
        return [client.pose(picture.data) for picture in pictures]


def test_right_answers_are_counted_and_timed(
    service: ServiceProcess, pictures: list[LoadPicture], expected: list[Any]
) -> None:
    outcome = ClosedLoop(service.url, pictures, expected).run(3, 0.8, lead_in=0.2)
    assert not outcome.failures
    assert len(outcome.latencies) > 5
    # Three clients with one request in flight each: Little's law ties their rate to the latency.
    assert outcome.rate * np.mean(outcome.latencies) == pytest.approx(3, rel=0.4)


def test_wrong_answers_are_told(service: ServiceProcess, pictures: list[LoadPicture], expected: list[Any]) -> None:
    other = copy.deepcopy(expected)
    other[1]["annotations"][0]["keypoints"][0] += 3
    outcome = ClosedLoop(service.url, pictures, other).run(1, 0.5, lead_in=0)
    assert outcome.failures
    assert all(failure == f"{pictures[1].name}: a joint 3.00 px away" for failure in outcome.failures)


def test_errors_are_told(service: ServiceProcess, pictures: list[LoadPicture], expected: list[Any]) -> None:
    loop = ClosedLoop(service.url, pictures, expected, options={"max_people": "0"})
    assert "HTTP 422" in loop.run(1, 0.2, lead_in=0).failures[0]
    gone = ClosedLoop("http://127.0.0.1:9", pictures, expected).run(1, 0.2, lead_in=0)
    assert gone.failures
    assert not gone.latencies


def test_memory_of_the_service_is_measured(service: ServiceProcess) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    measured = service.resident_mb()
    assert measured is not None
    assert 30 < measured < 700


def test_a_service_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="model repository"):
        with ServiceProcess({"TRITONPOSE_REPOSITORY": str(tmp_path / "nowhere")}, start_seconds=30):
            pass


def test_pictures_come_from_a_folder_by_name(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.webp"):
        cv2.imwrite(str(tmp_path / name), np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "notes.txt").write_text("x")
    found = folder_pictures(tmp_path, 2)
    assert [(p.name, p.media_type) for p in found] == [("a.JPG", "image/jpeg"), ("b.png", "image/png")]
    with pytest.raises(ValueError, match="no pictures"):
        folder_pictures(tmp_path / "nowhere", 2)
