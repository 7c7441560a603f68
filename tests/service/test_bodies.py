"""Bodies: what curl, browsers and programs send, and what must not get in."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bodies import Body, parse_body, read_bytes
from service.errors import InvalidOption, InvalidRequest, Overloaded, RequestTimeout, ServiceError, TooLarge
from service.errors import UnsupportedMedia as Unsupported
from service.settings import Settings

BOUNDARY = "xyz"


def multipart(*parts: tuple[str, bytes, bool], end: bytes = b"--xyz--\r\n") -> bytes:
    body = b""
    for name, content, is_file in parts:
        file = '; filename="a b;c.jpg"\r\nContent-Type: image/jpeg' if is_file else ""
        body += (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"
        )
    return body + end


def parse(data: bytes, content_type: str = f"multipart/form-data; boundary={BOUNDARY}", most: int = 100) -> Body:
    return parse_body(content_type, data, most)


def test_multipart_pictures_in_order_with_options() -> None:
    body = parse(multipart(("image", b"\xff\xd8one\r\n--xy", True), ("flip", b"true", False), ("image", b"two", False)))
    assert [(picture.data, picture.id) for picture in body.pictures] == [(b"\xff\xd8one\r\n--xy", 1), (b"two", 2)]
    assert body.options == [("flip", "true")]


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5))
def test_every_byte_survives_multipart(contents: list[bytes]) -> None:
    contents = [content for content in contents if b"--xyz" not in content] or [b""]
    body = parse(multipart(*(("image", content, True) for content in contents)))
    assert [picture.data for picture in body.pictures] == contents


@pytest.mark.parametrize("kind", ["image/jpeg", "image/png", "image/webp", "IMAGE/JPEG; q=1"])
def test_a_raw_picture_is_the_body(kind: str) -> None:
    body = parse(b"bytes", kind)
    assert [(picture.data, picture.id, picture.boxes) for picture in body.pictures] == [(b"bytes", 1, None)]


def as_json(*images: object, **members: object) -> bytes:
    return json.dumps({"images": list(images), **members}).encode()


def coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_json_with_ids_boxes_and_options() -> None:
    body = parse(
        as_json(
            {"data": coded(b"a")},
            {"id": 77, "data": "data:image/png;base64," + coded(b"b"), "boxes": [[1, 2, 30, 40.5]]},
            options={"max_people": 3, "flip": True},
        ),
        "application/json; charset=utf-8",
    )  # fmt: skip
    assert [(picture.data, picture.id) for picture in body.pictures] == [(b"a", 1), (b"b", 77)]
    assert body.pictures[0].boxes is None
    assert body.pictures[1].boxes is not None
    assert body.pictures[1].boxes.tolist() == [[1, 2, 31, 42.5]]
    assert body.options == [("max_people", 3), ("flip", True)]


def headers(count: int, size: int = 1) -> bytes:
    """A picture's part with more headers than it needs."""
    more = b"".join(b"X-%d: %b\r\n" % (n, b"x" * size) for n in range(count))
    return b'--xyz\r\nContent-Disposition: form-data; name="image"\r\n' + more + b"\r\nx\r\n--xyz--\r\n"


def test_parts_may_have_the_headers_that_programs_send() -> None:
    assert len(parse(headers(7, 200)).pictures) == 1


def test_hostile_bodies_cost_little() -> None:
    """Megabytes that are cheap to send must not be dear to read: a second on an idle machine would be too much."""
    for content_type, data in (
        ("multipart/form-data; boundary=xyz", b"--xyz\r\n" + b"a:b\r\n" * 2_000_000),
        ("multipart/form-data; boundary=xyz", b"--xyz\r\n\r\n\r\n" * 1_000_000),
        ("application/json", b"[" + b"[]," * 5_000_000),
        ("application/json", b'{"options": {"max_people": ' + b"1" * 10_000_000 + b"}}"),
        ("application/json", as_json({"data": ""}, **{"x" * 10_000_000: 1})),
    ):
        started = time.process_time()
        with pytest.raises(ServiceError) as caught:
            parse(data, content_type)
        assert time.process_time() - started < 1
        assert len(caught.value.detail) < 500, "what came is not sent back"


@pytest.mark.parametrize(
    "body",
    [
        as_json({"data": ""}, **{f"x{n}": 1 for n in range(140_000)}),
        as_json({"data": "", **{f"x{n}": 1 for n in range(140_000)}}),
        as_json({"data": "", "boxes": [""] * 140_000}),
        as_json({"data": "", "boxes": [[""] * 140_000]}),
    ],
    ids=["members", "members of an image", "boxes", "numbers of a box"],
)
def test_a_hundred_thousand_mistakes_are_told_as_one(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error object of each would take 0.4 s and 120 MB."""

    def validated(_: object) -> None:
        raise AssertionError("it must be refused before")

    monkeypatch.setattr("service.bodies.JsonBody.model_validate", validated)
    with pytest.raises(ServiceError):
        parse(body, "application/json")


@pytest.mark.parametrize(
    ("content_type", "data", "error", "said"),
    [
        ("", b"x", Unsupported, "missing"),
        ("text/plain", b"x", Unsupported, "text/plain"),
        ("image/gif", b"x", Unsupported, "image/gif"),
        ("application/x-www-form-urlencoded", b"x", Unsupported, "--data-binary"),
        ("multipart/form-data", b"x", InvalidRequest, "boundary"),
        ("multipart/form-data; boundary=xyz", b"", InvalidRequest, "ends before"),
        ("multipart/form-data; boundary=xyz", b"no parts at all", InvalidRequest, "multipart"),
        ("multipart/form-data; boundary=xyz", multipart(("image", b"x", True), end=b""), InvalidRequest, "ends before"),
        ("multipart/form-data; boundary=xyz", multipart(("flip", b"1", False)), InvalidRequest, "no part named image"),
        ("multipart/form-data; boundary=xyz", multipart(("photo", b"x", True)), InvalidRequest, "name it image"),
        ("multipart/form-data; boundary=xyz", multipart(("flip", b"x" * 1001, False)), InvalidRequest, "form fields"),
        ("multipart/form-data; boundary=xyz", multipart(*[("a", b"", False)] * 33), InvalidRequest, "form fields"),
        ("multipart/form-data; boundary=xyz", multipart(*[("image", b"", True)] * 101), TooLarge, "100 images"),
        ("multipart/form-data; boundary=" + "x" * 300, b"x", InvalidRequest, "Boundary"),
        ("multipart/form-data; boundary=xyz", headers(9), InvalidRequest, "header"),
        ("multipart/form-data; boundary=xyz", headers(1, 5000), InvalidRequest, "header"),
        ("application/json", b'{"images":' + b"[]," * 80_000 + b"}", TooLarge, "brackets"),
        ("application/json", b"", InvalidRequest, "not JSON"),
        ("application/json", b"[" * 100_000, InvalidRequest, "not JSON"),
        ("application/json", b"\xff\xfe", InvalidRequest, "not JSON"),
        ("application/json", b"[]", InvalidRequest, "top level"),
        ("application/json", b'{"images":[]}', InvalidRequest, "images"),
        ("application/json", b'{"image":"x"}', InvalidRequest, "images"),
        ("application/json", as_json({"data": "%%%"}), InvalidRequest, "base64"),
        ("application/json", as_json({"data": coded(b"a"), "id": "one"}), InvalidRequest, "images.0.id"),
        ("application/json", as_json({"data": coded(b"a"), "box": []}), InvalidRequest, "images.0.box"),
        ("application/json", as_json({"data": coded(b"a"), "id": 10**4000}), InvalidRequest, "images.0.id"),
        ("application/json", as_json(*[{"data": ""}] * 101), TooLarge, "101 images"),
        ("application/json", as_json({"data": "", "id": 2}, {"data": ""}), InvalidRequest, "same id"),
        ("application/json", as_json({"data": "", "boxes": [[1, 2, 3]]}), InvalidOption, "four numbers"),
        ("application/json", as_json({"data": "", "boxes": [[1, 2, float("nan"), 4]]}), InvalidOption, "finite"),
        ("application/json", as_json({"data": "", "boxes": [[1, 2, 0, 4]]}), InvalidOption, "positive"),
        ("application/json", as_json({"data": "", "boxes": [[1e300, 2, 1, 4]]}), InvalidOption, "million"),
        ("application/json", as_json({"data": "", "boxes": [[1, 2, 3, 4]] * 201}), TooLarge, "201 boxes"),
    ],
    ids=range(34),
)  # fmt: skip
def test_bad_bodies_are_named(content_type: str, data: bytes, error: type[ServiceError], said: str) -> None:
    with pytest.raises(error, match=said):
        parse(data, content_type)


@given(st.binary(max_size=200), st.sampled_from(["multipart/form-data; boundary=b", "application/json"]))
def test_no_body_leaves_the_error_tree(data: bytes, content_type: str) -> None:
    for body in (data, b"--b\r\n" + data + b"\r\n--b--", b'{"images":' + data):
        try:
            parse(body, content_type)
        except ServiceError as error:
            assert error.status in (400, 413, 422)


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def ignore(_: int) -> None:
    """Counts nothing."""


async def test_bytes_are_counted_while_they_arrive() -> None:
    settings = Settings(max_body_bytes=10)
    assert await read_bytes(pieces(b"12345", b"67890"), None, settings, ignore) == b"1234567890"
    with pytest.raises(TooLarge):
        await read_bytes(pieces(b"12345", b"67890", b"1"), "3", settings, ignore)

    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("a declared length over the limit is refused without reading")
        yield b""

    with pytest.raises(TooLarge, match="11 bytes"):
        await read_bytes(never(), "11", settings, ignore)


async def test_a_body_that_trickles_is_cut_off() -> None:
    async def trickle() -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0.01)
            yield b"x"

    with pytest.raises(RequestTimeout):
        await read_bytes(trickle(), None, Settings(body_seconds=0.05), ignore)


async def test_all_bodies_together_are_bounded() -> None:
    def full(_: int) -> None:
        raise Overloaded("full")

    with pytest.raises(Overloaded):
        await read_bytes(pieces(b"x"), None, Settings(), full)


async def slow(*parts: bytes | Exception) -> AsyncIterator[bytes]:
    """The first piece is there, the others take a turn of the loop each."""
    for index, part in enumerate(parts):
        if index:
            await asyncio.sleep(0)
        if isinstance(part, Exception):
            raise part
        yield part


def test_a_body_that_is_there_takes_no_turn_of_a_loop() -> None:
    reading = read_bytes(pieces(b"12", b"3"), "3", Settings(), ignore)
    with pytest.raises(StopIteration) as ended:
        reading.send(None)
    assert ended.value.value == b"123"


async def test_the_rest_of_a_body_is_waited_for() -> None:
    stop: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    assert await read_bytes(slow(b"1", b"2", b"3"), None, Settings(), ignore, stop=stop) == b"123"
    with pytest.raises(TooLarge, match="more than 4"):
        await read_bytes(slow(b"12", b"34", b"5"), None, Settings(max_body_bytes=4), ignore)
    with pytest.raises(ConnectionError, match="lost"):
        await read_bytes(slow(b"1", ConnectionError("lost")), None, Settings(), ignore)


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_whoever_gives_up_a_body_closes_it(turns: int) -> None:
    """Also before the loop has come to what was begun."""
    closed: list[str] = []

    async def never() -> AsyncIterator[bytes]:
        try:
            yield b"1"
            await asyncio.get_running_loop().create_future()
        finally:
            closed.append("closed")

    reading = asyncio.ensure_future(read_bytes(never(), None, Settings(), ignore))
    for _ in range(turns):
        await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    for _ in range(3):
        await asyncio.sleep(0)
    assert closed == (["closed"] if turns else [])


async def test_a_body_that_has_to_give_way_is_not_waited_for() -> None:
    stop: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    gone = False

    def hold(_: int) -> None:
        if gone:
            raise Overloaded("others hold less", retry_after=1)

    async def never() -> AsyncIterator[bytes]:
        yield b"1"
        await asyncio.get_running_loop().create_future()

    reading = asyncio.ensure_future(read_bytes(never(), None, Settings(), hold, stop=stop))
    await asyncio.sleep(0)
    gone = True
    stop.set_result(None)
    with pytest.raises(Overloaded, match="others"):
        await asyncio.wait_for(reading, 5)
