"""The HTTP contract, through the whole application: what a caller sends and what comes back."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import struct
import threading
import time
import zlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image
from pycocotools.coco import COCO

from service import routes
from service.app import create_app
from service.engines.fake import FakeEngine
from service.errors import InferenceFailed
from service.settings import Settings
from tests.service.marked_people import Card, as_json, card_engine, encode, paint

CARDS = (Card(20, 30, 60, 120, 0.9), Card(150, 60, 80, 140, 0.7), Card(250, 10, 50, 100, 0.5))
PHOTO = encode(paint(CARDS))
JPEG = encode(paint(CARDS), ".jpg")
ALPHA, BETA = "a-key-of-32-characters-and-more--1", "a-key-of-32-characters-and-more--2"


def parsed(response: httpx.Response, status: int = 200) -> Any:
    assert response.status_code == status, response.text
    return as_json(response.content)


def problem(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/problem+json"
    document = parsed(response, status)
    assert document["type"] == f"/problems/{kind}"
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    assert document["request_id"] == response.headers["x-request-id"]
    return document


def check_people(document: dict[str, Any]) -> None:
    assert len(document["annotations"]) == len(CARDS)
    for one, card in zip(document["annotations"], CARDS, strict=True):
        joints = np.array(one["keypoints"]).reshape(-1, 3)
        assert np.abs(joints[:, :2] - card.points).max() < 0.6


async def test_multipart_raw_and_json_give_the_same_people(client: httpx.AsyncClient) -> None:
    answers = [
        await client.post("/v1/pose", files={"image": ("photo.png", PHOTO, "image/png")}),
        await client.post("/v1/pose", content=PHOTO, headers={"Content-Type": "image/png"}),
        await client.post("/v1/pose", json={"images": [{"data": base64.b64encode(PHOTO).decode()}]}),
    ]
    documents = [parsed(answer) for answer in answers]
    check_people(documents[0])
    assert documents[0] == documents[1] == documents[2]


async def test_every_option_is_echoed_with_the_models_defaults(client: httpx.AsyncClient) -> None:
    info = parsed(await client.post("/v1/pose", files={"image": PHOTO}))["info"]
    expected = {
        "model": "pose", "score_threshold": 0.3, "box_threshold": 0.25, "max_people": 20, "nms_iou": 0.6,
        "nms_oks": 0.5, "nms_boxes": "hard", "nms_poses": "hard", "rescore": True, "flip": False, "fusion": "1,1",
        "format": "coco", "engine": "fake",
        "skeleton": "card3", "detector": "person_detector",
    }  # fmt: skip
    assert expected.items() <= info.items()


async def test_soft_suppression_over_http_lowers_scores(client: httpx.AsyncClient) -> None:
    async def scores(query: str) -> list[float]:
        answer = await client.post(f"/v1/pose?nms_iou=1&{query}", files={"image": PHOTO})
        return [person["score"] for person in parsed(answer)["annotations"]]

    hard, soft = await scores("nms_oks=1"), await scores("nms_oks=0.5&nms_poses=soft")
    assert len(soft) == len(hard) > 1
    assert max(soft) == max(hard)
    assert sum(soft) < 0.9 * sum(hard)


async def test_options_come_from_query_form_and_json(client: httpx.AsyncClient) -> None:
    by_query = await client.post("/v1/pose?max_people=2&fusion=1,0", files={"image": PHOTO})
    by_form = await client.post("/v1/pose", files={"image": PHOTO}, data={"max_people": "2", "fusion": "1,0"})
    body = {"images": [{"data": base64.b64encode(PHOTO).decode()}], "options": {"max_people": 2, "fusion": "1,0"}}
    by_json = await client.post("/v1/pose", json=body)
    documents = [parsed(response) for response in (by_query, by_form, by_json)]
    assert documents[0] == documents[1] == documents[2]
    assert len(documents[0]["annotations"]) == 2
    twice = await client.post("/v1/pose?flip=true", files={"image": PHOTO}, data={"flip": "true"})
    assert "flip: given twice" in problem(twice, 422, "invalid-option")["detail"]


async def test_several_pictures_count_from_one_and_keep_their_order(client: httpx.AsyncClient) -> None:
    empty = encode(paint([]))
    files = [("image", PHOTO), ("image", empty), ("image", PHOTO)]
    document = parsed(await client.post("/v1/pose", files=files))
    assert [image["id"] for image in document["images"]] == [1, 2, 3]
    assert [one["image_id"] for one in document["annotations"]] == [1] * 3 + [3] * 3
    assert [one["id"] for one in document["annotations"]] == [1, 2, 3, 4, 5, 6]


async def test_given_boxes_and_ids(client: httpx.AsyncClient) -> None:
    card = CARDS[1]
    image = {"id": 99, "data": base64.b64encode(PHOTO).decode(), "boxes": [[card.x, card.y, card.width, card.height]]}
    document = parsed(await client.post("/v1/pose", json={"images": [image]}))
    (one,) = document["annotations"]
    assert (one["image_id"], one["box_score"], one["bbox"]) == (99, 1.0, [150, 60, 80, 140])


async def test_results_go_into_pycocotools_unchanged(client: httpx.AsyncClient) -> None:
    document = parsed(await client.post("/v1/pose", files={"image": PHOTO}))
    results = parsed(await client.post("/v1/pose?format=results", files={"image": PHOTO}))
    truth = COCO()
    truth.dataset = document
    truth.createIndex()
    assert set(results[0]) == {"image_id", "category_id", "keypoints", "score"}
    loaded = truth.loadRes(results)
    assert len(loaded.getAnnIds()) == len(CARDS)


async def test_nobody_is_200_and_empty(client: httpx.AsyncClient) -> None:
    empty = encode(paint([]))
    assert parsed(await client.post("/v1/pose", files={"image": empty}))["annotations"] == []
    assert parsed(await client.post("/v1/pose?format=results", files={"image": empty})) == []
    drawn = await client.post("/v1/pose?format=image", files={"image": empty})
    assert drawn.status_code == 200


@pytest.mark.parametrize(
    ("query", "accept", "kind"),
    [
        ("?format=image", "*/*", "PNG"), ("?format=image", "image/jpeg", "JPEG"), ("", "image/png", "PNG"),
        ("", "image/jpeg, */*;q=0.1", "JPEG"), ("", "*/*", None), ("", "application/json, image/png", None),
        ("?format=coco", "image/png", None),
    ],
)  # fmt: skip
async def test_the_drawn_picture(client: httpx.AsyncClient, query: str, accept: str, kind: str | None) -> None:
    response = await client.post(f"/v1/pose{query}", files={"image": PHOTO}, headers={"Accept": accept})
    assert response.status_code == 200
    assert "Accept" in response.headers["vary"]
    if kind is None:
        check_people(parsed(response))
        return
    assert response.headers["content-type"] == f"image/{kind.lower()}"
    with Image.open(io.BytesIO(response.content)) as drawn:
        assert (drawn.format, drawn.size) == (kind, (320, 240))
        assert np.abs(np.asarray(drawn.convert("RGB")).astype(int) - paint(CARDS)).max() > 100


async def test_a_picture_counts_until_it_is_drawn_and_encoded(
    app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = app.state.service.pipeline._budget
    held, encode_picture = [], routes.encode_picture

    def watched(*args: Any, **kwargs: Any) -> bytes:
        held.append(budget._total - budget._free)
        return encode_picture(*args, **kwargs)

    monkeypatch.setattr(routes, "encode_picture", watched)
    assert (await client.post("/v1/pose?format=image", files={"image": PHOTO})).status_code == 200
    assert held == [2 * 320 * 240]
    assert budget._free == budget._total


async def test_one_picture_only_is_drawn(client: httpx.AsyncClient) -> None:
    files = [("image", PHOTO), ("image", PHOTO)]
    assert (
        "one picture"
        in problem(await client.post("/v1/pose?format=image", files=files), 422, "invalid-option")["detail"]
    )


async def test_coordinates_are_in_the_upright_frame(client: httpx.AsyncClient) -> None:
    """A phone held sideways stores a turned picture with an EXIF mark; people must stand upright in the answer."""
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(paint(CARDS)).transpose(Image.Transpose.ROTATE_90).save(buffer, "PNG", exif=exif)
    document = parsed(await client.post("/v1/pose", files={"image": buffer.getvalue()}))
    assert (document["images"][0]["width"], document["images"][0]["height"]) == (320, 240)
    check_people(document)


async def test_times_and_ids_are_told(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/pose", files={"image": PHOTO}, headers={"X-Request-ID": "trace-7"})
    assert response.headers["x-request-id"] == "trace-7"
    timing = dict(part.strip().split(";dur=") for part in response.headers["server-timing"].split(","))
    assert {"read", "queue", "decode", "detector", "crop", "pose", "people", "encode", "total"} <= set(timing)
    assert float(timing["total"]) >= float(timing["decode"])
    injected = await client.get("/v1/health/live", headers={"X-Request-ID": 'x" <script>'})
    assert len(injected.headers["x-request-id"]) == 32


def png_bomb(side: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = zlib.compress(b"\0" * (3 * side + 1) * 300)
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", row) + chunk(b"IEND", b"")


def gif() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("L", (64, 64), shade) for shade in (0, 255)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def tiny() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    return buffer.getvalue()


def raw(content: bytes, kind: str = "image/jpeg", query: str = "") -> dict[str, Any]:
    return {"url": f"/v1/pose{query}", "content": content, "headers": {"Content-Type": kind}}


BAD: dict[str, tuple[dict[str, Any], int, str]] = {
    "empty body": (raw(b""), 400, "invalid-image"),
    "empty body without type": ({"url": "/v1/pose", "content": b""}, 415, "unsupported-media"),
    "text as image": (raw(b"this is no picture"), 400, "invalid-image"),
    "text file": ({"url": "/v1/pose", "files": {"image": b"hello"}}, 400, "invalid-image"),
    "truncated jpeg": (raw(JPEG[: len(JPEG) // 2]), 400, "invalid-image"),
    "1x1": (raw(tiny(), "image/png"), 400, "invalid-image"),
    "png bomb": (raw(png_bomb(20_000), "image/png"), 413, "too-large"),
    "animated gif": (raw(gif(), "image/jpeg"), 415, "unsupported-media"),
    "gif type": (raw(gif(), "image/gif"), 415, "unsupported-media"),
    "wrong content type": (raw(JPEG, "text/html"), 415, "unsupported-media"),
    "curl default type": (raw(JPEG, "application/x-www-form-urlencoded"), 415, "unsupported-media"),
    "101 images": ({"url": "/v1/pose", "files": [("image", JPEG)] * 101}, 413, "too-large"),
    "no image part": ({"url": "/v1/pose", "files": {"photo": JPEG}}, 400, "invalid-request"),
    "broken json": (raw(b"{", "application/json"), 400, "invalid-request"),
    "nan threshold": (raw(JPEG, query="?score_threshold=nan"), 422, "invalid-option"),
    "nan nms": (raw(JPEG, query="?nms_iou=NaN&nms_oks=NaN"), 422, "invalid-option"),
    "infinite fusion": (raw(JPEG, query="?fusion=inf,1"), 422, "invalid-option"),
    "weights of another model": (raw(JPEG, query="?fusion=1,1,1"), 422, "invalid-option"),
    "unknown model": (raw(JPEG, query="?model=gpt"), 422, "invalid-option"),
    "model that is no pose model": (raw(JPEG, query="?model=person_detector"), 422, "invalid-option"),
    "typo": (raw(JPEG, query="?max_peple=3"), 422, "invalid-option"),
}


@pytest.mark.parametrize(("request_", "status", "kind"), BAD.values(), ids=BAD.keys())
async def test_bad_input_is_told_quickly_and_the_service_lives(
    client: httpx.AsyncClient, request_: dict[str, Any], status: int, kind: str
) -> None:
    await client.post("/v1/pose", files={"image": PHOTO})
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        problem(await client.post(**request_), status, kind)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.1, "the best of five, since the machine may be busy with other work"
    check_people(parsed(await client.post("/v1/pose", files={"image": PHOTO})))


async def test_one_bad_picture_fails_the_request_with_its_index(client: httpx.AsyncClient) -> None:
    for bad, status, kind in (
        (b"text", 400, "invalid-image"),
        (JPEG[:900], 400, "invalid-image"),
        (gif(), 415, "unsupported-media"),
    ):
        files = [("image", PHOTO), ("image", PHOTO), ("image", bad), ("image", PHOTO)]
        assert problem(await client.post("/v1/pose", files=files), status, kind)["image_index"] == 2
    images = [{"data": base64.b64encode(PHOTO).decode()}, {"data": "*"}]
    assert problem(await client.post("/v1/pose", json={"images": images}), 400, "invalid-request")["image_index"] == 1


async def test_unknown_paths_and_methods_are_problems(client: httpx.AsyncClient) -> None:
    problem(await client.get("/nowhere"), 404, "not-found")
    wrong = await client.get("/v1/pose")
    problem(wrong, 405, "method-not-allowed")
    assert wrong.headers["allow"] == "POST"


async def test_models_tell_what_a_program_needs(client: httpx.AsyncClient) -> None:
    listed = {model["name"]: model for model in parsed(await client.get("/v1/models"))["models"]}
    assert {name: model["kind"] for name, model in listed.items()} == {
        "person_detector": "detector", "pose": "pose", "pose_flip": "pose_flip"
    }  # fmt: skip
    pose = parsed(await client.get("/v1/models/pose"))
    assert pose == listed["pose"]
    assert pose["skeleton"]["keypoints"] == ["nose", "left_wrist", "right_wrist"]
    assert pose["versions"] == [1]
    problem(await client.get("/v1/models/nobody"), 404, "not-found")


async def test_health_page_docs_and_problem_types(client: httpx.AsyncClient) -> None:
    assert parsed(await client.get("/v1/health/live"))["status"] == "live"
    assert parsed(await client.get("/v1/health/ready")) == {"status": "ready", "engine": "fake", "models": ["pose"]}
    page = await client.get("/")
    assert "text/html" in page.headers["content-type"]
    assert (await client.get("/", headers={"If-None-Match": page.headers["etag"]})).status_code == 304
    with Image.open(io.BytesIO((await client.get("/sample.jpg")).content)) as sample:
        assert sample.format == "JPEG"
    assert (await client.get("/docs")).status_code == 200
    operation = parsed(await client.get("/openapi.json"))["paths"]["/v1/pose"]["post"]
    assert "multipart/form-data" in operation["requestBody"]["content"]
    assert {"model", "fusion", "max_people"} <= {parameter["name"] for parameter in operation["parameters"]}
    assert parsed(await client.get("/problems/overloaded"))["status"] == 429
    problem(await client.get("/problems/nothing"), 404, "not-found")


async def test_an_engine_that_is_gone_is_503_until_it_is_back(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.available = False
    lost = await client.post("/v1/pose", files={"image": PHOTO})
    problem(lost, 503, "engine-unavailable")
    assert int(lost.headers["retry-after"]) >= 1
    problem(await client.get("/v1/health/ready"), 503, "engine-unavailable")
    assert parsed(await client.get("/v1/health/live"))["status"] == "live"
    engine.available = True
    check_people(parsed(await client.post("/v1/pose", files={"image": PHOTO})))
    parsed(await client.get("/v1/health/ready"))


async def test_failures_and_surprises_of_models_are_500(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.failures["pose"] = InferenceFailed("out of memory")
    problem(await client.post("/v1/pose", files={"image": PHOTO}), 500, "inference-failed")
    engine.failures["pose"] = RuntimeError("a secret detail of the inside")
    surprise = problem(await client.post("/v1/pose", files={"image": PHOTO}), 500, "internal")
    assert "secret" not in json.dumps(surprise)
    engine.failures.clear()
    check_people(parsed(await client.post("/v1/pose", files={"image": PHOTO})))


async def test_too_little_memory_is_503_and_passes(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("service.images.decode", decode)
        short = await client.post("/v1/pose", files={"image": PHOTO})
        problem(short, 503, "out-of-memory")
        assert int(short.headers["retry-after"]) >= 1
    check_people(parsed(await client.post("/v1/pose", files={"image": PHOTO})))
    assert 'tritonpose_rejected_total{reason="out-of-memory"} 1.0' in (await client.get("/metrics")).text


async def test_parsing_a_large_body_ends_with_the_deadline(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def parse(*_: object) -> None:
        released.wait(10)

    monkeypatch.setattr(routes, "_parse", parse)
    started = time.perf_counter()
    headers = {"Content-Type": "image/png", "X-Request-Timeout": "0.2"}
    late = await client.post("/v1/pose", content=PHOTO + bytes(300_000), headers=headers)
    released.set()
    assert "0.2 s" in problem(late, 504, "deadline-exceeded")["detail"]
    assert time.perf_counter() - started < 8


async def test_before_the_models_are_loaded_it_lives_but_is_not_ready(engine: FakeEngine) -> None:
    engine.available = False
    app = create_app(Settings(cpu_threads=1), engine)
    async with app.router.lifespan_context(app), connect(app) as client:
        assert (await client.get("/v1/health/live")).status_code == 200
        problem(await client.get("/v1/health/ready"), 503, "engine-unavailable")
        early = await client.post("/v1/pose", files={"image": PHOTO})
        problem(early, 503, "engine-unavailable")
        assert "retry-after" in early.headers
        engine.available = True
        await asyncio.wait_for(app.state.service.readiness.wait(), 10)
        assert (await client.get("/v1/health/ready")).status_code == 200
        app.state.service.readiness.drain()
        assert "shutting down" in problem(await client.get("/v1/health/ready"), 503, "engine-unavailable")["detail"]
        assert (await client.post("/v1/pose", files={"image": PHOTO})).status_code == 200


def connect(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://pose")


async def test_a_full_queue_is_429_and_a_slow_answer_504() -> None:
    engine = card_engine()
    app = create_app(Settings(cpu_threads=1, max_running=1, max_waiting=2, deadline_seconds=2), engine)
    async with app.router.lifespan_context(app), connect(app) as client:
        await asyncio.wait_for(app.state.service.readiness.wait(), 20)
        engine.delay = 0.03
        posts = [client.post("/v1/pose", files={"image": PHOTO}) for _ in range(9)]
        answers = await asyncio.gather(*posts)
        refused = [answer for answer in answers if answer.status_code == 429]
        assert len(refused) == 6
        for answer in refused:
            problem(answer, 429, "overloaded")
            assert int(answer.headers["retry-after"]) >= 1
        assert sum(answer.status_code == 200 for answer in answers) == 3
        engine.delay = 30
        started = time.perf_counter()
        problem(await client.post("/v1/pose", files={"image": PHOTO}), 504, "deadline-exceeded")
        assert time.perf_counter() - started < 4
        engine.delay = 0
        check_people(parsed(await client.post("/v1/pose", files={"image": PHOTO})))
        admission = app.state.service.admission
        assert (admission.admitted, admission.running) == (0, 0)


async def test_engine_calls_get_what_is_left_of_the_deadline() -> None:
    """A network that nobody waits for any more would take the place of one that somebody waits for."""
    engine = card_engine()
    app = create_app(Settings(cpu_threads=1, deadline_seconds=9), engine)
    async with app.router.lifespan_context(app), connect(app) as client:
        await asyncio.wait_for(app.state.service.readiness.wait(), 20)
        engine.calls.clear()
        engine.delay = 0.05
        check_people(parsed(await client.post("/v1/pose", files={"image": PHOTO})))
    detector, pose = [call.timeout for call in engine.calls]
    assert detector is not None
    assert pose is not None
    assert 8 < detector <= 9
    assert 7 < pose <= detector - 0.05


async def test_a_body_that_nobody_could_answer_need_not_travel(
    app: FastAPI, client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.unavailable = "Triton at localhost:8001 does not answer"
    travelled = []

    async def body() -> AsyncIterator[bytes]:
        travelled.append(True)
        yield PHOTO

    answer = await client.post("/v1/pose", content=body(), headers={"Content-Type": "image/jpeg"})
    assert "localhost:8001" in problem(answer, 503, "engine-unavailable")["detail"]
    assert not travelled
    problem(await client.get("/v1/health/ready"), 503, "engine-unavailable")
    metrics = (await client.get("/metrics")).text
    assert "tritonpose_ready 0.0" in metrics
    assert "tritonpose_engine_up 0.0" in metrics
    engine.unavailable = None
    check_people(parsed(await client.post("/v1/pose", files={"image": PHOTO})))
    await asyncio.sleep(1)  # a scrape may show what was a second ago
    assert "tritonpose_ready 1.0" in (await client.get("/metrics")).text


async def test_keys_guard_the_models_and_leave_health_open() -> None:
    app = create_app(Settings(cpu_threads=1, api_keys=f"{ALPHA}, {BETA}"), card_engine())
    async with app.router.lifespan_context(app), connect(app) as client:
        await asyncio.wait_for(app.state.service.readiness.wait(), 20)
        refused = await client.post("/v1/pose", files={"image": PHOTO})
        problem(refused, 401, "unauthorized")
        assert refused.headers["www-authenticate"] == "Bearer"
        for headers in ({"X-API-Key": "gamma"}, {"Authorization": "Bearer alph"}, {"X-API-Key": "ä".encode("latin-1")}):
            problem(await client.get("/v1/models", headers=headers), 403, "forbidden")
        for headers in ({"X-API-Key": BETA}, {"Authorization": f"bearer {ALPHA}"}):
            check_people(parsed(await client.post("/v1/pose", files={"image": PHOTO}, headers=headers)))
        for path in ("/", "/v1/health/live", "/v1/health/ready", "/metrics"):
            assert (await client.get(path)).status_code == 200


async def test_every_operation_that_is_said_to_need_a_key_does() -> None:
    app = create_app(Settings(cpu_threads=1, api_keys=ALPHA), card_engine())
    async with app.router.lifespan_context(app), connect(app) as client:
        await asyncio.wait_for(app.state.service.readiness.wait(), 20)
        guarded = set()
        for path, operations in parsed(await client.get("/openapi.json"))["paths"].items():
            for method, operation in operations.items():
                answer = await client.request(method, path.replace("{name}", "pose"))
                if "security" in operation:
                    guarded.add((method, path))
                    problem(answer, 401, "unauthorized")
                else:
                    assert answer.status_code == 200
        assert {("post", "/v1/pose"), ("get", "/v1/models"), ("get", "/v1/models/{name}")} == guarded


async def test_limits_on_bytes_hold_whatever_the_header_says() -> None:
    app = create_app(Settings(cpu_threads=1, max_body_bytes=150_000, max_image_bytes=100_000), card_engine())
    async with app.router.lifespan_context(app), connect(app) as client:
        await asyncio.wait_for(app.state.service.readiness.wait(), 20)
        problem(await client.post(**raw(b"x" * 150_001)), 413, "too-large")
        problem(await client.post(**raw(b"x" * 100_001)), 413, "too-large")

        async def endless() -> Any:
            while True:
                yield b"x" * 1000

        streamed = await client.post("/v1/pose", content=endless(), headers={"Content-Type": "image/jpeg"})
        problem(streamed, 413, "too-large")


async def test_prometheus_sees_requests_people_and_batches(client: httpx.AsyncClient) -> None:
    await client.post("/v1/pose", files={"image": PHOTO})
    await client.post("/v1/pose", files={"image": b"text"})
    await client.get("/some/path/nobody/has")
    text = (await client.get("/metrics")).text
    assert 'tritonpose_requests_total{route="/v1/pose",status="200"} 1.0' in text
    assert 'tritonpose_requests_total{route="/v1/pose",status="400"} 1.0' in text
    assert 'tritonpose_requests_total{route="other",status="404"} 1.0' in text
    assert "tritonpose_people_per_image_sum 3.0" in text
    assert 'tritonpose_stage_seconds_count{stage="decode"} 1.0' in text
    assert 'tritonpose_engine_rows_bucket{le="3.0",model="pose"}' in text
    assert "tritonpose_ready 1.0" in text
    assert "tritonpose_requests_running 0.0" in text


async def test_a_caller_who_hangs_up_frees_his_place(app: FastAPI, engine: FakeEngine) -> None:
    """Under load, callers time out and go: their work must not go on behind their back."""
    engine.delay = 30
    messages = [{"type": "http.request", "body": JPEG, "more_body": False}]
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        """Nobody reads it."""

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/v1/pose", "raw_path": b"/v1/pose", "query_string": b"", "root_path": "",
        "headers": [(b"content-type", b"image/jpeg")], "client": ("1.2.3.4", 5), "server": ("pose", 80),
    }  # fmt: skip
    request = asyncio.ensure_future(app(scope, receive, send))
    admission = app.state.service.admission
    while not admission.running:
        assert not request.done()
        await asyncio.sleep(0.005)
    gone.set()
    await asyncio.wait_for(request, 2)
    assert (admission.admitted, admission.running) == (0, 0)
