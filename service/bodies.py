"""Request bodies: multipart, a raw picture or JSON, read with a bound on every count and handed on as pictures.

Bytes are counted while they arrive, whatever ``Content-Length`` says; nothing is spooled to disk.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import InvalidOption, InvalidRequest, RequestTimeout, TooLarge, UnsupportedMedia
from service.options import MAX_OPTIONS, MAX_VALUE
from service.settings import Settings
from service.steps import Array, NamedPicture, Picture

RAW_TYPES = ("image/jpeg", "image/png", "image/webp")
# Boxes that a caller may give for one picture; the densest crowd pictures of COCO have some 60.
MAX_BOXES = 200
# Form fields are options: a dozen short texts.
_MAX_FIELDS = MAX_OPTIONS
_MAX_FIELD_BYTES = MAX_VALUE
# Of one part: curl and browsers send two, with a file name.
_MAX_PART_HEADERS = 8
_MAX_PART_HEADER_BYTES = 4096
# Brackets, braces and commas of a JSON body. A hundred pictures with two hundred boxes each have 120,000; 64 MB of
# empty lists would be twenty million objects, and a gigabyte and a half.
_MAX_JSON_MARKS = 150_000
# Integers that every JSON reader keeps; an id is repeated with each person.
_MAX_ID = 2**53


@dataclass
class Body:
    """What a request brought: its pictures, and options given as form fields or JSON members."""

    pictures: list[Picture] = field(default_factory=list)
    options: list[tuple[str, object]] = field(default_factory=list)


class JsonImage(BaseModel):
    """One picture of a JSON body."""

    model_config = ConfigDict(extra="forbid", strict=True)

    data: str = Field(description="The file in base64; a `data:` URL is fine.")
    id: int | None = Field(
        None, ge=-_MAX_ID, le=_MAX_ID, description="`image_id` in the answer. Default: its place in the list, from 1."
    )
    boxes: list[list[float]] | None = Field(
        None, description="People as `[x, y, w, h]` in pixels: then these are posed and no detector runs."
    )


class JsonBody(BaseModel):
    """A JSON body."""

    model_config = ConfigDict(extra="forbid", strict=True)

    images: list[JsonImage] = Field(min_length=1)
    options: dict[str, Any] = Field(default_factory=dict, description="Options, as in the query.")


async def read_bytes(
    stream: AsyncIterator[bytes],
    declared: str | None,
    settings: Settings,
    hold: Callable[[int], None],
    *,
    seconds: float = math.inf,
    stop: asyncio.Future[None] | None = None,
) -> bytes:
    """Read a body, counting.

    Args:
        stream: the body's pieces as they arrive.
        declared: the ``Content-Length`` header, if any.
        settings: ``max_body_bytes`` and ``body_seconds`` are used.
        hold: told the number of bytes of each piece; raises Overloaded when all requests together hold too many.
        seconds: until the request's deadline, where that is sooner than ``body_seconds``.
        stop: done when the rest need not arrive; ``hold(0)`` then raises why.

    Raises:
        TooLarge: more bytes than allowed, by the header or by the count.
        RequestTimeout: the body took too long to arrive.
    """
    limit = settings.max_body_bytes
    if declared is not None and declared.isdecimal() and int(declared) > limit:
        raise TooLarge(f"the body has {declared} bytes; at most {limit} are served")
    received: list[bytes] = []
    total = 0

    async def receive() -> None:
        nonlocal total
        async for piece in stream:
            hold(len(piece))
            received.append(piece)
            total += len(piece)
            if total > limit:
                raise TooLarge(f"the body has more than {limit} bytes")

    reading = receive()
    try:
        waits_for = reading.send(None)
    except StopIteration:  # all of it was there: no task, and no turn of the loop
        return b"".join(received)
    await _finish(reading, waits_for, max(0.0, min(settings.body_seconds, seconds)), hold, stop)
    return b"".join(received)  # one copy, and none of a body that came in one piece


async def _finish(
    begun: Coroutine[Any, Any, None],
    waits_for: object,
    seconds: float,
    hold: Callable[[int], None],
    stop: asyncio.Future[None] | None,
) -> None:
    """Let a coroutine end that has begun, and whose first wait is for ``waits_for``; else as :func:`read_bytes`."""
    reading = asyncio.ensure_future(_Rest(begun, waits_for))
    try:
        # Not wait_for: before Python 3.12 it swallows a cancellation that comes as the body ends.
        awaited = (reading,) if stop is None else (reading, stop)
        await asyncio.wait(awaited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            if stop is not None and stop.done():
                hold(0)
            raise RequestTimeout(f"the body did not arrive within {seconds:g} s")
        reading.result()
    finally:
        reading.cancel()


class _Rest:
    """What is left of a coroutine that has begun (from Python 3.12 on, eager tasks do the same)."""

    def __init__(self, begun: Coroutine[Any, Any, None], waits_for: object) -> None:
        self._begun = begun
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        waits_for = self._waits_for
        try:
            while True:
                try:
                    sent = yield waits_for
                except BaseException as error:  # the coroutine's to handle, cancellation too
                    waits_for = self._begun.throw(error)
                else:
                    waits_for = self._begun.send(sent)
        except StopIteration:
            return


def parse_body(content_type: str, data: bytes, max_images: int) -> Body:
    """Parse a whole body.

    Args:
        content_type: the ``Content-Type`` header.
        data: the body.
        max_images: most pictures of one request.

    Raises:
        UnsupportedMedia: another content type.
        InvalidRequest: a body that is not what its content type says.
        TooLarge: more pictures than ``max_images``.
        InvalidOption: boxes that are not four finite numbers with a positive size.
    """
    kind, parameters = parse_options_header(content_type)
    name = kind.decode("latin-1").lower()
    if name in RAW_TYPES:
        return Body([Picture(data, 1)])
    if name == "multipart/form-data":
        return _parse_multipart(data, parameters.get(b"boundary"), max_images)
    if name == "application/json":
        return _parse_json(data, max_images)
    raise UnsupportedMedia(
        f"content type {name[:100] or 'missing'!r}: send multipart/form-data with parts named image "
        f"(curl -F image=@photo.jpg), one of {', '.join(RAW_TYPES)} "
        "(curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg'), or application/json"
    )


class _Parts:
    """Callbacks of the multipart parser: ``image`` parts become pictures, the others options."""

    def __init__(self, max_images: int) -> None:
        self.body = Body()
        self._max_images = max_images
        self._headers: dict[bytes, bytes] = {}
        self._name, self._value, self._data = b"", b"", bytearray()
        self.ended = False

    def begin(self) -> None:
        self._headers, self._data = {}, bytearray()
        self._name = self._value = b""

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]

    def part_end(self) -> None:
        _, parameters = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = parameters.get(b"name", b"").decode("utf-8", "replace")
        pictures, options = self.body.pictures, self.body.options
        if name == "image":
            if len(pictures) == self._max_images:
                raise TooLarge(f"more than {self._max_images} images in one request")
            pictures.append(Picture(bytes(self._data), len(pictures) + 1))
        elif b"filename" in parameters:
            raise InvalidRequest(f"a file in the part {name[:50]!r}: name it image")
        else:
            if len(options) == _MAX_FIELDS or len(self._data) > _MAX_FIELD_BYTES:
                raise InvalidRequest(f"form fields: at most {_MAX_FIELDS} of {_MAX_FIELD_BYTES} bytes")
            options.append((name, self._data.decode("utf-8", "replace")))

    def end(self) -> None:
        self.ended = True


def _parse_multipart(data: bytes, boundary: bytes | None, max_images: int) -> Body:
    if not boundary:
        raise InvalidRequest("multipart/form-data without a boundary")
    parts = _Parts(max_images)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": parts.begin,
                "on_header_field": parts.header_field,
                "on_header_value": parts.header_value,
                "on_header_end": parts.header_end,
                "on_part_data": parts.data,
                "on_part_end": parts.part_end,
                "on_end": parts.end,
            },
            max_header_count=_MAX_PART_HEADERS,
            max_header_size=_MAX_PART_HEADER_BYTES,
        )
        parser.write(data)
        parser.finalize()
    except FormParserError as error:
        raise InvalidRequest(f"the multipart body cannot be read: {error}") from None
    if not parts.ended:
        raise InvalidRequest("the multipart body ends before its last boundary")
    if not parts.body.pictures:
        raise InvalidRequest("no part named image (curl -F image=@photo.jpg)")
    return parts.body


def _parse_json(data: bytes, max_images: int) -> Body:
    if sum(map(data.count, (b"[", b"{", b","))) > _MAX_JSON_MARKS:
        raise TooLarge(f"the JSON body has more than {_MAX_JSON_MARKS} brackets, braces and commas")
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    _check_counts(raw, max_images)
    try:
        parsed = JsonBody.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:50] for part in first["loc"])
        raise InvalidRequest(f"the JSON body: {where or 'top level'}: {first['msg']}") from None
    pictures = []
    for index, image in enumerate(parsed.images):
        with NamedPicture(index):
            boxes = None if image.boxes is None else _boxes(image.boxes)
            pictures.append(Picture(_from_base64(image.data), index + 1 if image.id is None else image.id, boxes))
    ids = [picture.id for picture in pictures]
    if len(set(ids)) != len(ids):
        raise InvalidRequest("two images of the JSON body have the same id")
    return Body(pictures, list(parsed.options.items()))


def _check_counts(raw: object, max_images: int) -> None:
    """Refuse more of anything than there may be, before the validation makes an error of each (0.4 s for 150,000)."""
    if not isinstance(raw, dict):
        return
    _check_members("the JSON body", raw, JsonBody)
    images = raw.get("images")
    if not isinstance(images, list):
        return
    if len(images) > max_images:
        raise TooLarge(f"{len(images)} images; at most {max_images} in one request")
    for index, image in enumerate(images):
        if not isinstance(image, dict):
            continue
        with NamedPicture(index):
            _check_members("an image of the JSON body", image, JsonImage)
            boxes = image.get("boxes")
            if isinstance(boxes, list):
                _check_boxes(boxes)


def _check_members(what: str, found: dict[str, object], model: type[BaseModel]) -> None:
    if len(found) > 2 * len(model.model_fields):
        raise InvalidRequest(f"{what} has {len(found)} members; it may have {', '.join(model.model_fields)}")


def _check_boxes(boxes: list[object]) -> None:
    if len(boxes) > MAX_BOXES:
        raise TooLarge(f"{len(boxes)} boxes; at most {MAX_BOXES} for one image")
    if any(isinstance(box, list) and len(box) != 4 for box in boxes):
        raise InvalidOption("boxes: each box is four numbers x, y, width, height")


def _from_base64(text: str) -> bytes:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"data is not base64: {error}") from None


def _boxes(given: list[list[float]]) -> Array:
    """COCO boxes x y w h to float64 [P, 4] x1 y1 x2 y2."""
    boxes = np.asarray(given, np.float64).reshape(-1, 4)
    # A box far outside any picture would overflow the crop's affine.
    if not (np.isfinite(boxes).all() and (np.abs(boxes) < 1e6).all() and (boxes[:, 2:] > 0).all()):
        raise InvalidOption("boxes: numbers must be finite, below a million, with positive width and height")
    boxes[:, 2:] += boxes[:, :2]
    return boxes
