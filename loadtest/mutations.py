"""Inputs made from the corpus by chance: damaged files, in damaged envelopes. One number, one input, every time."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loadtest.corpus import Specimen
from loadtest.wire import request_bytes

_TYPES = ("image/jpeg", "image/png", "image/webp")
# Whatever is wrong with an input, the answer says so in one of these ways, or finds the people in what is left of it.
SOUND = frozenset({200, 400, 413, 415, 422})


@dataclass(frozen=True)
class Input:
    """A request.

    Attributes:
        name: how it came to be.
        request: on the wire.
        statuses: what a sound service may answer.
    """

    name: str
    request: bytes
    statuses: frozenset[int]


def make_input(specimens: Sequence[Specimen], seed: int, number: int) -> Input:
    """The input of that number. The first ones are the specimens as they are, each with its own statuses."""
    if number < len(specimens):
        one = specimens[number]
        return Input(one.name, request_bytes("/v1/pose?max_people=1", one.data, one.media_type), one.statuses)
    chance = random.Random(f"{seed}/{number}")
    specimen = chance.choice(specimens)
    data, damage = specimen.data, []
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
        name, mutate = chance.choice(_DAMAGES)
        data = mutate(chance, data, chance.choice(specimens).data)
        damage.append(name)
    envelope, wrap = chance.choice(_ENVELOPES)
    content_type, body = wrap(chance, specimen.media_type, data)
    name = f"{specimen.name}; {', '.join(damage) or 'whole'}; {envelope}"
    return Input(name, request_bytes("/v1/pose" + _query(chance), body, content_type), SOUND)


# Damages: the file, and another one to take pieces from.
def _truncate(chance: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _flip_bits(chance: random.Random, data: bytes, other: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 3, 10, 100)) if data else 0):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _overwrite(chance: random.Random, data: bytes, other: bytes) -> bytes:
    start = chance.randrange(len(data) + 1)
    filling = chance.choice((b"\0", b"\xff", b"\x7f", b"\x80", b"\xff\xd8", b"\xff\xda", b"IDAT", b"\0\0\0\1"))
    run = filling * chance.randrange(1, 40)
    return data[:start] + run + data[start + len(run) :]


def _enlarge_numbers(chance: random.Random, data: bytes, other: bytes) -> bytes:
    """Sizes and lengths stand in the first bytes as 16 or 32 bits."""
    changed = bytearray(data)
    for _ in range(chance.randrange(1, 4)):
        start = chance.randrange(max(1, min(len(data), 120)))
        number = chance.choice((0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, chance.getrandbits(32)))
        width, order = chance.choice((2, 4)), chance.choice(("big", "little"))
        changed[start : start + width] = (number & (2 ** (8 * width) - 1)).to_bytes(width, order)
    return bytes(changed)


def _remove(chance: random.Random, data: bytes, other: bytes) -> bytes:
    start = chance.randrange(len(data) + 1)
    return data[:start] + data[start + chance.randrange(1, 200) :]


def _repeat(chance: random.Random, data: bytes, other: bytes) -> bytes:
    start = chance.randrange(len(data) + 1)
    piece = data[start : start + chance.randrange(1, 2000)]
    return data[:start] + piece * chance.randrange(2, 20) + data[start:]


def _insert(chance: random.Random, data: bytes, other: bytes) -> bytes:
    start = chance.randrange(len(data) + 1)
    return data[:start] + chance.randbytes(chance.randrange(1, 500)) + data[start:]


def _splice(chance: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: chance.randrange(len(data) + 1)] + other[chance.randrange(len(other) + 1) :]


def _append(chance: random.Random, data: bytes, other: bytes) -> bytes:
    return data + other


_DAMAGES: tuple[tuple[str, Callable[[random.Random, bytes, bytes], bytes]], ...] = (
    ("truncated", _truncate),
    ("bits flipped", _flip_bits),
    ("overwritten", _overwrite),
    ("numbers enlarged", _enlarge_numbers),
    ("piece removed", _remove),
    ("piece repeated", _repeat),
    ("noise inserted", _insert),
    ("spliced", _splice),
    ("appended", _append),
)


# Envelopes: content type and body.
def _raw(chance: random.Random, media_type: str, data: bytes) -> tuple[str | None, bytes]:
    return media_type, data


def _mistyped(chance: random.Random, media_type: str, data: bytes) -> tuple[str | None, bytes]:
    odd = (
        "",
        "image/*",
        "image/gif",
        "text/html",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "x" * 5000,
    )
    return chance.choice((*_TYPES, *odd, None, "application/json", "image/jpeg; charset=utf-8")), data


def _form(chance: random.Random, media_type: str, data: bytes) -> tuple[str | None, bytes]:
    parts = [
        b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + data
        for _ in range(chance.choice((1, 1, 1, 2, 5)))
    ]
    if chance.random() < 0.5:
        name, value = chance.choice((("max_people", "2"), ("flip", "x"), ("nope", "1"), ("é", "\0"), ("", "")))
        parts.append(f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode())
    return "multipart/form-data; boundary=b", b"\r\n".join(parts) + b"\r\n--b--\r\n"


def _broken_form(chance: random.Random, media_type: str, data: bytes) -> tuple[str | None, bytes]:
    _, body = _form(chance, media_type, data)
    spoil = chance.choice((_truncate, _flip_bits, _remove, _repeat, _insert))
    boundary = chance.choice(("; boundary=b", "; boundary=", "; boundary=" + "b" * 300, "", '; boundary="b'))
    return "multipart/form-data" + boundary, spoil(chance, body[:3000], b"") + body[3000:]


def _json(chance: random.Random, media_type: str, data: bytes) -> tuple[str | None, bytes]:
    text = base64.b64encode(data).decode()
    image: dict[str, object] = {"data": chance.choice(("", "data:image/jpeg;base64,")) + text}
    if chance.random() < 0.4:
        numbers = (0, 1.5, -3, 1e308, 10**30, float("nan"), float("inf"), 60, 100, 140)
        image["boxes"] = [[chance.choice(numbers) for _ in range(chance.choice((4, 4, 4, 3)))] for _ in range(3)]
    if chance.random() < 0.2:
        image["id"] = chance.choice((-1, 0, 2**63, "1", None, 1.5, True))
    body: dict[str, object] = {"images": [image] * chance.choice((1, 1, 2))}
    if chance.random() < 0.3:
        odd: tuple[object, ...] = (
            ["max_people"],
            {"max_people": 3},
            {"flip": []},
            {"model": "\ud800"},
            {"fusion": "1,0,0"},
            None,
        )
        body["options"] = chance.choice(odd)
    return "application/json", json.dumps(body).encode()


def _broken_json(chance: random.Random, media_type: str, data: bytes) -> tuple[str | None, bytes]:
    _, body = _json(chance, media_type, data[:600])
    deep = b"[" * 100_000
    spoil = chance.choice((_truncate, _flip_bits, _remove, _overwrite, _insert))
    bodies = (
        spoil(chance, body, b""),
        deep,
        b'{"images":' + deep,
        b"1e999999",
        b'{"images":[{"data":"=' * 3,
        b"\xef\xbb\xbf{}",
    )
    return "application/json", chance.choice((bodies[0], bodies[0], bodies[0], *bodies))


_ENVELOPES: tuple[tuple[str, Callable[[random.Random, str, bytes], tuple[str | None, bytes]]], ...] = (
    ("raw", _raw),
    ("raw", _raw),
    ("raw", _raw),
    ("raw, another type", _mistyped),
    ("form", _form),
    ("broken form", _broken_form),
    ("JSON", _json),
    ("broken JSON", _broken_json),
)


def _query(chance: random.Random) -> str:
    """Mostly what keeps an input cheap; sometimes options that are odd or wrong."""
    if chance.random() < 0.85:
        return "?max_people=1"
    name = chance.choice(
        ("max_people", "nms_iou", "nms_oks", "flip", "fusion", "model", "format", "rescore", "x", "%00")
    )
    value = chance.choice(
        ("1", "0", "-1", "nan", "1e400", "true", "1,1,1", ",", "image", "results", "%ff%fe", "9" * 400)
    )
    return f"?{name}={value}"
