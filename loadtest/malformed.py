"""Requests that are wrong in a way with one right answer: each kind names the statuses it may get."""

from __future__ import annotations

import base64
import json
import random
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from loadtest.pictures import LoadPicture
from loadtest.wire import request_bytes

_POSE = "/v1/pose"


@dataclass(frozen=True)
class Malformed:
    """A request and what a sound server may say to it."""

    name: str
    request: bytes
    statuses: frozenset[int]


def _cut(rng: random.Random, picture: LoadPicture) -> tuple[str, bytes, str | None, set[int]]:
    end = rng.randrange(len(picture.data) // 10, len(picture.data) * 9 // 10)
    return _POSE, picture.data[:end], picture.media_type, {400}


def _noise(rng: random.Random, picture: LoadPicture) -> tuple[str, bytes, str | None, set[int]]:
    return _POSE, b"\0" + rng.randbytes(rng.randrange(1, 20_000)), "image/jpeg", {400}


def _nothing(rng: random.Random, picture: LoadPicture) -> tuple[str, bytes, str | None, set[int]]:
    return _POSE, b"", "image/png", {400}


def _text(rng: random.Random, picture: LoadPicture) -> tuple[str, bytes, str | None, set[int]]:
    return _POSE, b"a picture, please", rng.choice(("text/plain", "application/octet-stream", None)), {415}


def _gif(rng: random.Random, picture: LoadPicture) -> tuple[str, bytes, str | None, set[int]]:
    return _POSE, b"GIF89a" + rng.randbytes(500), "image/jpeg", {415}


def _bomb(rng: random.Random, picture: LoadPicture) -> tuple[str, bytes, str | None, set[int]]:
    return _POSE, png_bomb(30_000, 30_000), "image/png", {413}


def _option(rng: random.Random, picture: LoadPicture) -> tuple[str, bytes, str | None, set[int]]:
    wrong = rng.choice(
        ("max_people=0", "max_people=nan", "nms_iou=2", "colour=red", "fusion=,", "model=nobody", "flip=perhaps")
    )
    return f"{_POSE}?{wrong}", picture.data, picture.media_type, {422}


def _multipart(rng: random.Random, picture: LoadPicture) -> tuple[str, bytes, str | None, set[int]]:
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    whole = head + picture.data + b"\r\n--b--\r\n"
    kind = "multipart/form-data" + rng.choice(("", "; boundary=other", "; boundary=b"))
    return _POSE, whole[: len(whole) // 2], kind, {400}


def _json(rng: random.Random, picture: LoadPicture) -> tuple[str, bytes, str | None, set[int]]:
    bodies: tuple[object, ...] = (
        {"images": []},
        {"images": [{"data": "§"}]},
        {"images": [{"data": base64.b64encode(picture.data[:400]).decode()}]},
        {"pictures": 1},
        [1, 2],
    )
    body = json.dumps(rng.choice(bodies)).encode()
    return _POSE, body[:-1] if rng.random() < 0.3 else body, "application/json", {400}


def _boxes(rng: random.Random, picture: LoadPicture) -> tuple[str, bytes, str | None, set[int]]:
    box = rng.choice(([1, 2, 3], [0, 0, -5, 9], ["a", 0, 1, 1]))
    image = {"data": base64.b64encode(picture.data).decode(), "boxes": [box]}
    return _POSE, json.dumps({"images": [image]}).encode(), "application/json", {400, 422}


def _path(rng: random.Random, picture: LoadPicture) -> tuple[str, bytes, str | None, set[int]]:
    return rng.choice(("/v1/poses", "/v2/pose", "/v1/models/nobody/1")), picture.data, picture.media_type, {404}


_KINDS: Mapping[str, Callable[[random.Random, LoadPicture], tuple[str, bytes, str | None, set[int]]]] = {
    "cut picture": _cut,
    "noise": _noise,
    "empty body": _nothing,
    "wrong content type": _text,
    "GIF": _gif,
    "PNG of 900 million pixels": _bomb,
    "wrong option": _option,
    "broken multipart": _multipart,
    "broken JSON": _json,
    "wrong boxes": _boxes,
    "wrong path": _path,
}
KINDS = tuple(_KINDS)


def malformed(
    rng: random.Random, picture: LoadPicture, kind: str | None = None, headers: Mapping[str, str] | None = None
) -> Malformed:
    """A wrong request of that kind, or of any; ``picture`` is what it spoils."""
    kind = kind or rng.choice(KINDS)
    path, body, content_type, statuses = _KINDS[kind](rng, picture)
    return Malformed(kind, request_bytes(path, body, content_type, headers=headers), frozenset(statuses))


def png_bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises that many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
