"""Bad input over HTTP: each fault has its status and its kind, is told quickly, and costs nobody else anything."""

from __future__ import annotations

import base64
import io
import struct
import time
import zlib
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.service.answers import JPEG, PHOTO, check_people, parsed, problem, raw


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
