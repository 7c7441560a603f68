"""The whole service, over HTTP, on both engines: the same people, the same refusals.

Real gateway processes, the shipped repository, a real tritonserver. Were these to fail, it would matter to a caller
where the networks happen to run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.triton.server import TritonServer
from loadtest.agreement import Recall, disagreement, recall
from loadtest.pictures import LoadPicture, rendered_pictures
from loadtest.server import ServiceProcess

pytestmark = pytest.mark.slow

Clients = Mapping[str, httpx.Client]
PICTURES = rendered_pictures(6, (0, 6), seed=4)
OPTIONS: dict[str, dict[str, str]] = {
    "default": {},
    "flip": {"flip": "true"},
    "one radius": {"fusion": "1,0,0"},
    "two people": {"max_people": "2"},
    "more boxes": {"box_threshold": "0.1", "nms_iou": "0.7", "max_people": "12"},
    "LSP's joints": {"model": "pose_lsp14"},
    "results": {"format": "results"},
}
BAD: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "no picture": ({}, {"content": b"no picture", "headers": {"Content-Type": "image/jpeg"}}),
    "a cut picture": ({}, {"content": PICTURES[0].data[:500], "headers": {"Content-Type": "image/jpeg"}}),
    "nothing": ({}, {"content": b"", "headers": {"Content-Type": "image/jpeg"}}),
    "another type": ({}, {"content": b"GIF89a", "headers": {"Content-Type": "image/gif"}}),
    "an unknown model": ({"model": "nobody"}, {"files": {"image": PICTURES[0].data}}),
    "a detector as the model": ({"model": "person_detector"}, {"files": {"image": PICTURES[0].data}}),
    "too many weights": ({"fusion": "1,1,1,1"}, {"files": {"image": PICTURES[0].data}}),
    "a threshold above 1": ({"score_threshold": "2"}, {"files": {"image": PICTURES[0].data}}),
    "an unknown option": ({"color": "red"}, {"files": {"image": PICTURES[0].data}}),
    "broken JSON": ({}, {"content": b"{", "headers": {"Content-Type": "application/json"}}),
    "too many pictures": ({}, {"files": [("image", PICTURES[0].data)] * 101}),
}


@pytest.fixture(scope="module")
def clients(triton_server: TritonServer) -> Iterator[Clients]:
    """HTTP clients of two real services, by engine."""
    triton = {"TRITONPOSE_ENGINE": "triton", "TRITONPOSE_TRITON_URL": triton_server.grpc_url}
    with (
        ServiceProcess({"TRITONPOSE_ENGINE": "embedded"}) as embedded,
        ServiceProcess(triton, start_seconds=120) as on_triton,
        httpx.Client(base_url=embedded.url, timeout=120) as first,
        httpx.Client(base_url=on_triton.url, timeout=120) as second,
    ):
        yield {"embedded": first, "triton": second}


def pose(client: httpx.Client, data: bytes, options: Mapping[str, str]) -> Any:
    answer = client.post("/v1/pose", params=dict(options), files={"image": data})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_each_service_runs_on_its_engine(clients: Clients) -> None:
    for engine, client in clients.items():
        assert pose(client, PICTURES[0].data, {})["info"]["engine"] == engine


@pytest.mark.parametrize("name", OPTIONS)
def test_same_people_in_rendered_scenes(clients: Clients, name: str) -> None:
    found, people = Recall(), 0
    for picture in PICTURES:
        expected, answer = (pose(clients[engine], picture.data, OPTIONS[name]) for engine in ("embedded", "triton"))
        reason = disagreement(expected, answer)
        assert reason is None, f"{picture.name}: {reason}"
        people += len(expected if isinstance(expected, list) else expected["annotations"])
        if name == "default" and picture.scene is not None:
            found += recall(picture.scene, answer)
    assert people >= 5
    if name == "default":
        assert found.found >= found.known / 4, found  # nobody would be the same nobody on both


def test_same_people_in_photographs(clients: Clients, photographs: Path) -> None:
    annotations = json.loads((photographs / "coco_val.json").read_text())
    names = {image["id"]: image["file_name"] for image in annotations["images"]}
    crowd: dict[str, int] = {}
    for person in annotations["annotations"]:
        crowd[names[person["image_id"]]] = crowd.get(names[person["image_id"]], 0) + 1
    chosen = sorted(crowd, key=lambda name: (-crowd[name], name))[:4] + sorted(crowd)[:12]
    people = 0
    for name in chosen:
        data = (photographs / "coco_val" / name).read_bytes()
        expected, answer = (pose(clients[engine], data, {}) for engine in ("embedded", "triton"))
        reason = disagreement(expected, answer)
        assert reason is None, f"{name}: {reason}"
        people += len(expected["annotations"])
    assert people >= 10


def test_same_people_when_many_ask_at_once(clients: Clients) -> None:
    """Triton then joins rows of several callers, and has to hand them back apart."""
    expected = {picture.name: pose(clients["embedded"], picture.data, {}) for picture in PICTURES}

    def differs(picture: LoadPicture) -> str | None:
        return disagreement(expected[picture.name], pose(clients["triton"], picture.data, {}))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(differs, [*PICTURES] * 4)) == [None] * 4 * len(PICTURES)


def test_same_people_in_a_request_of_several_pictures(clients: Clients) -> None:
    files = [("image", picture.data) for picture in PICTURES]
    answers = [clients[engine].post("/v1/pose", files=files).json() for engine in ("embedded", "triton")]
    assert len(answers[0]["images"]) == len(PICTURES)
    assert disagreement(*answers) is None


@pytest.mark.parametrize("name", BAD)
def test_same_refusals(clients: Clients, name: str) -> None:
    options, body = BAD[name]
    expected, answer = (clients[engine].post("/v1/pose", params=options, **body) for engine in ("embedded", "triton"))
    assert 400 <= expected.status_code < 500
    assert (answer.status_code, answer.json()["type"]) == (expected.status_code, expected.json()["type"])


def test_same_models(clients: Clients) -> None:
    """Skeletons, versions and thresholds come from the configs: read from the files, or from Triton."""
    expected, answer = (clients[engine].get("/v1/models").json() for engine in ("embedded", "triton"))
    assert len(expected["models"]) >= 3
    assert answer == expected


def test_services_are_well_afterwards(clients: Clients) -> None:
    for client in clients.values():
        assert client.get("/v1/health/ready").status_code == 200
