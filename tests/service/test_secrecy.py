"""What must never be in a log, however much is logged: keys, pictures, what is written into pictures, forged lines."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image, PngImagePlugin

from service.errors import InferenceFailed
from service.keys import digest_of, key_line, new_key
from service.logs import set_up
from service.settings import Settings
from tests.service.marked_people import Card, card_engine, paint
from tests.service.wire import serving, talk

WRITTEN = "WhereIWasLastSummer"
KEY, WRONG, PASTED = new_key(), new_key(), new_key()


def pictures() -> list[bytes]:
    """A PNG and a JPEG with a text in their metadata, a cut one, and one of a format that is refused."""
    pixels = Image.fromarray(paint([Card(20, 30, 60, 120)]))
    exif, text = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x010E] = WRITTEN
    exif[0x9286] = WRITTEN.encode()
    text.add_text("Comment", WRITTEN)
    buffers = [io.BytesIO() for _ in range(3)]
    pixels.save(buffers[0], "PNG", pnginfo=text, exif=exif)
    pixels.save(buffers[1], "JPEG", exif=exif)
    pixels.save(buffers[2], "GIF", comment=WRITTEN.encode())
    png, jpeg, gif = (buffer.getvalue() for buffer in buffers)
    return [png, jpeg, jpeg[: len(jpeg) * 2 // 3], png[: len(png) // 2], gif, WRITTEN.encode()]


@pytest.fixture(params=["text", "json"])
def logged(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """All that the service would write at its most talkative."""
    root, names = logging.getLogger(), ("uvicorn.error", "python_multipart", "PIL", "httpx", "httpcore")
    before = (root.level, list(root.handlers), [logging.getLogger(name).level for name in names])
    set_up(Settings(log_level="debug", log_format=request.param))
    for client in ("httpx", "httpcore"):  # the test's own
        logging.getLogger(client).setLevel("WARNING")
    stream = io.StringIO()
    for handler in root.handlers:
        assert isinstance(handler, logging.StreamHandler)
        handler.setStream(stream)
    yield stream
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    for name, level in zip(names, before[2], strict=True):
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(False)


async def test_a_talkative_log_of_a_whole_session_holds_no_secrets(
    logged: io.StringIO, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    file, engine = tmp_path / "keys", card_engine()
    file.write_text(key_line("ann", KEY) + "\n", encoding="utf-8")
    async with serving(Settings(cpu_threads=1, api_keys_file=file, log_level="debug"), engine) as (app, port):
        address = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=address, headers={"Authorization": f"Bearer {KEY}"}) as client:
            for picture in pictures():
                coded = base64.b64encode(picture).decode()
                await client.post("/v1/pose", files={"image": (f"{WRITTEN}.jpg", picture)})
                await client.post("/v1/pose", content=picture, headers={"Content-Type": "image/jpeg"})
                await client.post("/v1/pose", json={"images": [{"data": coded}]})
                await client.post("/v1/pose", json={"images": [{"data": coded, "box": coded}]})
            await client.post(f"/v1/pose?api_key={PASTED}", files={"image": pictures()[0]})
            await client.get("/v1/models", headers={"Authorization": f"Bearer {WRONG}"})
            engine.failures["pose"] = InferenceFailed("out of memory")
            await client.post("/v1/pose", files={"image": pictures()[0]})
            engine.failures["pose"] = RuntimeError("a surprise")
            assert (await client.post("/v1/pose", files={"image": pictures()[0]})).status_code == 500
            await client.get("/nowhere%0a2026-01-01 ERROR service: forged%1b[31m", headers={"X-Request-ID": "x\ty"})
        await talk(port, b"GET / HTTP/1.1\r\nX: " + KEY.encode() + b"\r\n broken\0\r\n\r\n")
        file.write_text(f"ann {PASTED}\n", encoding="utf-8")
        app.state.service.keys._look_at = 0.0
        await talk(
            port, f"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nConnection: close\r\n\r\n".encode()
        )
    text = logged.getvalue()
    assert text.count("/v1/pose") >= 25, "the log is on"
    assert "a surprise" in text
    assert "the API keys stay as they were" in text
    for secret in (KEY, WRONG, PASTED, WRITTEN, digest_of(KEY).hex()):
        assert secret not in text
    for picture in pictures()[:5]:
        for start in range(0, len(picture) - 24, 1 + len(picture) // 200):
            piece = picture[start : start + 24]
            if len(set(piece)) > 4:  # not the flat parts, which could be any text
                assert repr(piece)[2:-1] not in text
                assert base64.b64encode(piece).decode() not in text
    lines = text.splitlines()
    assert not [line for line in lines if line.startswith("2026-01-01 ERROR")], "nobody else writes lines into our log"
    assert "\x1b" not in text
    if "json" in request.node.name:
        assert all(isinstance(json.loads(line), dict) for line in lines)
