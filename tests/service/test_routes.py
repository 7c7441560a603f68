"""The HTTP contract, through the whole application: what a caller sends and what comes back."""

from __future__ import annotations

import base64
import io
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image
from pycocotools.coco import COCO

from service import routes
from tests.service.answers import CARDS, PHOTO, check_people, parsed, problem
from tests.service.marked_people import encode, paint


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
