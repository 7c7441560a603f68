"""What browsers are told about answers: nothing is framed, guessed at or kept, and other sites' pages stay out."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from service.app import create_app
from service.safe_headers import DEFAULTS
from service.settings import Settings
from tests.service.marked_people import Card, card_engine, encode, paint

PHOTO = encode(paint([Card(20, 30, 60, 120)]))


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings, card_engine())
    async with app.router.lifespan_context(app):
        await asyncio.wait_for(app.state.service.readiness.wait(), 20)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://pose") as client:
            yield client


async def test_every_answer_carries_them(client: httpx.AsyncClient) -> None:
    answers = [
        await client.post("/v1/pose", files={"image": PHOTO}),
        await client.post("/v1/pose", files={"image": b"text"}),
        await client.get("/v1/models"),
        await client.get("/metrics"),
        await client.get("/nowhere"),
    ]
    for answer in answers:
        assert {name: answer.headers.get(name) for name in DEFAULTS} == DEFAULTS
    for path in ("/", "/docs", "/docs/swagger-ui-bundle.js", "/sample.jpg"):
        headers = (await client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] != "no-store", "what never changes may be kept"
        assert headers.get_list("content-security-policy") == [headers["content-security-policy"]]


async def test_the_page_may_run_its_own_script_and_no_other(client: httpx.AsyncClient) -> None:
    answer = await client.get("/")
    policy = answer.headers["content-security-policy"]
    scripts = re.findall(r"<script>(.*?)</script>", answer.text, re.S)
    assert len(scripts) == answer.text.count("<script") == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert not re.search(r"\son\w+=", answer.text), "handlers in attributes would not run"
    again = await client.get("/", headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304
    assert again.headers["content-security-policy"] == policy, "a browser takes the headers of a 304 over"


async def test_docs_load_nothing_from_elsewhere(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    assert "unsafe" not in page.headers["content-security-policy"].partition("script-src")[2].partition(";")[0]
    assert not re.search(r"https?://", page.text)
    assert "<script>" not in page.text
    loaded = re.findall(r'(?:src|href)="(docs/[^"]+)"', page.text)
    assert len(loaded) == 3
    for part in loaded:
        answer = await client.get(f"/{part}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].split(";")[0] in ("text/javascript", "text/css")
    bundle = (await client.get("/docs/swagger-ui-bundle.js")).text
    assert "SwaggerUIBundle" in bundle
    assert (await client.get("/docs/%2e%2e/secret")).status_code == 404
    assert (await client.get("/docs/redoc.standalone.js")).status_code == 404


async def test_docs_and_metrics_can_be_closed() -> None:
    async with connected(
        Settings(cpu_threads=1, api_docs=False, metrics_need_key=True, api_keys="alpha-of-at-least-32-characters-1")
    ) as client:
        assert (await client.get("/docs")).status_code == 404
        assert (await client.get("/openapi.json")).status_code == 404
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.get("/metrics", headers={"X-API-Key": "beta"})).status_code == 403
        assert (
            await client.get("/metrics", headers={"Authorization": "Bearer alpha-of-at-least-32-characters-1"})
        ).status_code == 200
        assert (await client.get("/v1/health/ready")).status_code == 200


async def test_pages_of_other_sites_may_ask_only_where_they_are_named() -> None:
    ours, theirs = "https://app.example.org", "https://elsewhere.example.org"
    asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    async with connected(Settings(cpu_threads=1)) as client:
        answer = await client.post("/v1/pose", files={"image": PHOTO}, headers={"Origin": ours})
        assert "access-control-allow-origin" not in answer.headers
        assert (await client.options("/v1/pose", headers={"Origin": ours, **asking})).status_code == 405
    async with connected(Settings(cpu_threads=1, cors_origins=f"{ours}, http://localhost:3000")) as client:
        allowed = await client.options("/v1/pose", headers={"Origin": ours, **asking})
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == ours
        assert "access-control-allow-credentials" not in allowed.headers
        answer = await client.post("/v1/pose", files={"image": PHOTO}, headers={"Origin": ours})
        assert answer.headers["access-control-allow-origin"] == ours
        assert "Retry-After" in answer.headers["access-control-expose-headers"]
        refused = await client.options("/v1/pose", headers={"Origin": theirs, **asking})
        assert "access-control-allow-origin" not in refused.headers
        bad = await client.post("/v1/pose", files={"image": b"x"}, headers={"Origin": ours})
        assert (bad.status_code, bad.headers["access-control-allow-origin"]) == (400, ours)


@pytest.mark.parametrize("origin", ["example.org", "https://example.org/", "https://example.org/path", "https://*.org"])
def test_origins_are_checked(origin: str) -> None:
    with pytest.raises(ValueError, match="origin"):
        Settings(cors_origins=origin)
