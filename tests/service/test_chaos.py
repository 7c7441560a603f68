"""A crowd of callers, a third of them broken or gone half-way: afterwards the service must be as before."""

from __future__ import annotations

import asyncio
import base64
import random

import httpx
from fastapi import FastAPI

from service.engines.fake import FakeEngine
from tests.service.marked_people import Card, encode, paint

CARDS = (Card(20, 30, 60, 120, 0.9), Card(150, 60, 80, 140, 0.7))
PHOTO, JPEG = encode(paint(CARDS)), encode(paint(CARDS), ".jpg")


def damaged(rng: random.Random) -> bytes:
    """A picture cut, stretched or with bytes changed."""
    data = bytearray(rng.choice((PHOTO, JPEG)))
    for _ in range(rng.randrange(1, 20)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data[: rng.randrange(len(data))] if rng.random() < 0.5 else data)


async def ask(client: httpx.AsyncClient, rng: random.Random) -> int:
    """One caller; 0 when he hung up, else the status."""
    options = rng.choice(
        ("", "?flip=true", "?format=results", "?format=image", "?max_people=nan", "?nope=1", "?fusion=,")
    )
    if rng.random() < 0.6:
        request = client.post(
            f"/v1/pose{options}", files=[("image", rng.choice((PHOTO, JPEG)))] * rng.choice((1, 1, 3))
        )
    elif rng.random() < 0.5:
        kind = rng.choice(("image/jpeg", "image/webp", "multipart/form-data; boundary=b", "application/json", "text/x"))
        request = client.post(f"/v1/pose{options}", content=damaged(rng), headers={"Content-Type": kind})
    else:
        image = {"data": base64.b64encode(damaged(rng)).decode(), "boxes": [[rng.uniform(-9, 300) for _ in range(4)]]}
        request = client.post(f"/v1/pose{options}", json={"images": [image]})
    patience = rng.choice((0.001, 0.01, 30, 30))
    try:
        response = await asyncio.wait_for(request, patience)
    except asyncio.TimeoutError:
        return 0
    if response.status_code >= 400:
        assert response.headers["content-type"] == "application/problem+json"
    return response.status_code


async def test_the_service_outlives_a_bad_crowd(client: httpx.AsyncClient, app: FastAPI, engine: FakeEngine) -> None:
    rng = random.Random(4)
    engine.delay = 0.002
    seen: set[int] = set()
    for _ in range(12):
        seen |= set(await asyncio.gather(*(ask(client, rng) for _ in range(25))))
    assert {0, 200, 400, 415, 422} <= seen <= {0, 200, 400, 413, 415, 422, 429}
    admission = app.state.service.admission
    assert (admission.admitted, admission.running, admission.waiting) == (0, 0, 0)
    answer = await client.post("/v1/pose", files={"image": PHOTO})
    assert answer.status_code == 200
    assert len(answer.json()["annotations"]) == 2
    assert (await client.get("/v1/health/ready")).status_code == 200
