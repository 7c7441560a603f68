"""The quick look at a JPEG's header: where it says anything it must say what Pillow says."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.jpeg_header import ordinary_jpeg


def jpeg(width: int = 61, height: int = 43, mode: str = "RGB", **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {}, {"progressive": True}, {"subsampling": 0}, {"optimize": True, "quality": 5}, {"comment": b"x" * 300},
        {"icc_profile": b"p" * 70_000}, {"dpi": (72, 72)}, {"restart_marker_rows": 1},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_ordinary_files_are_told_as_pillow_tells_them(mode: str, options: dict[str, object]) -> None:
    assert ordinary_jpeg(jpeg(mode=mode, **options)) == (61, 43, mode)
    assert ordinary_jpeg(jpeg(1000, 700, mode, **options)) == (1000, 700, mode)


def test_what_may_be_turned_or_is_no_rgb_is_left_to_pillow() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for data in (jpeg(exif=exif), jpeg(mode="CMYK"), jpeg(xmp=b"<x:xmpmeta tiff:Orientation='6'/>"), b"", b"\xff\xd8"):
        assert ordinary_jpeg(data) is None
    png = io.BytesIO()
    Image.new("RGB", (9, 9)).save(png, "PNG")
    assert ordinary_jpeg(png.getvalue()) is None


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=4), st.booleans())
def test_a_damaged_header_is_never_told_otherwise_than_by_pillow(
    changes: list[tuple[int, int]], progressive: bool
) -> None:
    data = bytearray(jpeg(progressive=progressive))
    for place, value in changes:
        data[place] = value
    told = ordinary_jpeg(bytes(data))
    if told is None:
        return
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            assert told == (*image.size, image.mode)
    except (OSError, SyntaxError, ValueError):
        pass  # Pillow reads more of it than the header: such a file is refused when it is decoded


@pytest.mark.parametrize("cut", range(0, 700, 13))
def test_a_header_that_ends_early_is_left_to_pillow(cut: int) -> None:
    data = jpeg()
    told = ordinary_jpeg(data[:cut])
    assert told in (None, (61, 43, "RGB"))


def test_thousands_of_segments_take_no_time() -> None:
    """It runs on the event loop."""
    data = b"\xff\xd8" + b"\xff\xfe\x00\x02" * 60_000
    started = time.thread_time()
    assert ordinary_jpeg(data) is None
    assert time.thread_time() - started < 0.01
