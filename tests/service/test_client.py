"""The client: what it sends, what it makes of answers and errors. A user would lose the reason of a failure."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import httpx
import pytest

from service.client import AsyncPoseClient, PoseClient, PoseImage, ProblemError, ServiceUnreachable

Handler = Callable[[httpx.Request], httpx.Response]
DOCUMENT = {"info": {}, "images": [{"id": 1}], "annotations": [], "categories": []}
PROBLEM = {
    "type": "/problems/invalid-image",
    "title": "Not a readable image",
    "status": 400,
    "detail": "the file is cut off",
    "image_index": 2,
    "request_id": "abc",
}


def client(handler: Handler, **options: object) -> PoseClient:
    return PoseClient("http://service", transport=httpx.MockTransport(handler), **options)  # type: ignore[arg-type]


def answering(response: httpx.Response, seen: list[httpx.Request] | None = None) -> Handler:
    def handler(request: httpx.Request) -> httpx.Response:
        request.read()
        if seen is not None:
            seen.append(request)
        return response

    return handler


def test_bytes_are_sent_as_image_parts_and_options_as_query() -> None:
    seen: list[httpx.Request] = []
    with client(answering(httpx.Response(200, json=DOCUMENT), seen), api_key="secret") as poses:
        answer = poses.pose([b"one", b"two"], max_people=3, flip=True, fusion=(1, 0, 0.5), score_threshold=None)
    request = seen[0]
    assert answer == DOCUMENT
    assert request.url.path == "/v1/pose"
    assert dict(request.url.params) == {"max_people": "3", "flip": "true", "fusion": "1,0,0.5", "format": "coco"}
    assert request.headers["authorization"] == "Bearer secret"
    body = request.content
    assert body.count(b'name="image"') == 2
    assert body.index(b"one") < body.index(b"two")


def test_ids_and_boxes_are_sent_as_json() -> None:
    seen: list[httpx.Request] = []
    with client(answering(httpx.Response(200, json=[]), seen)) as poses:
        assert poses.pose([PoseImage(b"\xff\xd8", id=42, boxes=[[1, 2, 3, 4]]), b"plain"], format="results") == []
    images = json.loads(seen[0].content)["images"]
    assert images[0] == {"data": base64.b64encode(b"\xff\xd8").decode(), "id": 42, "boxes": [[1.0, 2.0, 3.0, 4.0]]}
    assert base64.b64decode(images[1]["data"]) == b"plain"
    assert images[1].keys() == {"data"}


def test_a_drawn_picture_comes_back_as_bytes() -> None:
    response = httpx.Response(200, content=b"\x89PNG", headers={"content-type": "image/png"})
    with client(answering(response)) as poses:
        assert poses.pose(b"x", format="image") == b"\x89PNG"


def test_an_error_carries_the_problem_document() -> None:
    with client(answering(httpx.Response(400, json=PROBLEM))) as poses, pytest.raises(ProblemError) as caught:
        poses.pose(b"x")
    error = caught.value
    assert (error.status, error.type, error.image_index, error.request_id) == (400, "invalid-image", 2, "abc")
    assert error.problem == PROBLEM
    assert "the file is cut off" in str(error)


def test_an_error_page_of_a_proxy_is_still_a_problem() -> None:
    response = httpx.Response(502, text="<html>bad gateway</html>")
    with client(answering(response)) as poses, pytest.raises(ProblemError, match="bad gateway") as caught:
        poses.models()
    assert (caught.value.status, caught.value.type) == (502, "about:blank")


def test_no_answer_is_told_apart_from_a_refusal() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused", request=request)

    with client(refuse) as poses:
        with pytest.raises(ServiceUnreachable, match="refused"):
            poses.pose(b"x")
        assert poses.ready() is False
        with pytest.raises(ServiceUnreachable, match="not ready"):
            poses.wait_until_ready(0.01)


def test_a_busy_service_is_asked_again_after_the_pause_it_wants() -> None:
    answers = [
        httpx.Response(429, json={"type": "/problems/overloaded"}, headers={"retry-after": "0"}),
        httpx.Response(503, json={"type": "/problems/engine-unavailable"}, headers={"retry-after": "0"}),
        httpx.Response(200, json=DOCUMENT),
    ]
    with client(lambda request: answers.pop(0), retries=2) as poses:
        assert poses.pose(b"x") == DOCUMENT


def test_retries_end_and_other_errors_are_never_repeated() -> None:
    calls: list[httpx.Request] = []
    busy = httpx.Response(429, json={"type": "/problems/overloaded"}, headers={"retry-after": "0"})
    with client(answering(busy, calls), retries=3) as poses, pytest.raises(ProblemError) as caught:
        poses.pose(b"x")
    assert (caught.value.status, caught.value.retry_after, len(calls)) == (429, 0.0, 4)
    calls.clear()
    with client(answering(httpx.Response(422, json={}), calls), retries=3) as poses, pytest.raises(ProblemError):
        poses.pose(b"x")
    assert len(calls) == 1


async def test_the_async_client_does_the_same() -> None:
    answers = [
        httpx.Response(503, json={}, headers={"retry-after": "0"}),
        httpx.Response(200, json=DOCUMENT),
        httpx.Response(200, json={"models": []}),
        httpx.Response(200, json={}),
        httpx.Response(503, json={}),
        httpx.Response(400, json=PROBLEM),
    ]
    transport = httpx.MockTransport(lambda request: answers.pop(0))
    async with AsyncPoseClient("http://service", retries=1, transport=transport) as poses:
        assert await poses.pose(b"x") == DOCUMENT
        assert await poses.models() == {"models": []}
        assert await poses.ready() is True
        assert await poses.ready() is False
        with pytest.raises(ProblemError, match="cut off"):
            await poses.pose(b"x")


async def test_the_async_client_tells_when_nobody_answers() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("too slow", request=request)

    async with AsyncPoseClient("http://service", transport=httpx.MockTransport(refuse)) as poses:
        with pytest.raises(ServiceUnreachable, match="too slow"):
            await poses.pose(b"x")
        assert await poses.ready() is False
