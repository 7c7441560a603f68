"""Decoding: a wrong pixel, a sideways phone photo or a bomb that takes the service down is what these prevent."""

from __future__ import annotations

import contextlib
import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from service.errors import InvalidImage, TooLarge, UnsupportedMedia
from service.image_header import read_header
from service.images import decode, upright

LIMIT = 50_000_000


def picture(width: int = 61, height: int = 43, mode: str = "RGB") -> Image.Image:
    ys, xs = np.mgrid[:height, :width]
    rgb = np.stack([xs * 255 // width, ys * 255 // height, (xs + ys) % 256], -1).astype(np.uint8)
    return Image.fromarray(rgb).convert(mode)


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def read(data: bytes, limit: int = LIMIT) -> np.ndarray:
    return decode(data, read_header(data, limit))


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"quality": 80}),
    ],
)
def test_colour_pictures_have_the_pixels_that_pillow_sees(image_format: str, options: dict[str, object]) -> None:
    data = encoded(picture(), image_format, **options)
    with Image.open(io.BytesIO(data)) as reference:
        expected = np.asarray(reference.convert("RGB"))
    decoded = read(data)
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    # Both link libjpeg-turbo and libwebp, but chroma upsampling may differ by rounding.
    assert np.abs(decoded.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied_once(orientation: int, image_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if image_format == "JPEG" else {}
    data = encoded(picture(), image_format, exif=exif, **options)
    with Image.open(io.BytesIO(data)) as reference:
        expected = np.asarray(ImageOps.exif_transpose(reference).convert("RGB"))
    decoded = read(data)
    assert decoded.shape == expected.shape
    assert np.abs(decoded.astype(int) - expected).max() <= 2


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_an_exif_block_behind_the_pixels_is_read_without_decoding_them() -> None:
    """A hundred large PNGs in one body would else be decoded before anything counts their pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6
    block = png_chunk(b"eXIf", exif.tobytes()[6:])
    good = encoded(picture(), "PNG")
    ordinary = good[:-12] + block + good[-12:]
    with Image.open(io.BytesIO(ordinary)) as reference:
        expected = np.asarray(ImageOps.exif_transpose(reference).convert("RGB"))
    assert np.array_equal(read(ordinary), expected)
    # Pixels that no decoder would get through.
    broken = good[:33] + png_chunk(b"IDAT", b"no zlib stream") + block + good[-12:]
    assert read_header(broken, LIMIT).orientation == 6
    with pytest.raises(InvalidImage):
        read(broken)


def test_a_png_of_chunks_without_end_is_searched_in_little_time() -> None:
    data = encoded(picture(), "PNG")
    many = data[:-12] + png_chunk(b"teSt", b"") * 1_000_000 + png_chunk(b"eXIf", b"") + data[-12:]
    started = time.thread_time()
    assert read_header(many, LIMIT).orientation == 1
    assert time.thread_time() - started < 0.2
    for length in (2**31, 2**32 - 1):
        assert read_header(data[:-12] + struct.pack(">I", length) + b"eXIf" + data[-12:], LIMIT).orientation == 1


def test_orientation_of_plain_arrays_agrees_with_pillow() -> None:
    stored = np.asarray(picture(5, 3))
    for orientation in range(1, 9):
        image = Image.fromarray(stored)
        image.getexif()[0x0112] = orientation
        assert np.array_equal(upright(stored, orientation), np.asarray(ImageOps.exif_transpose(image)))


def test_grey_and_one_bit_pictures_become_rgb() -> None:
    for mode in ("L", "1", "P"):
        data = encoded(picture(mode=mode), "PNG")
        with Image.open(io.BytesIO(data)) as reference:
            assert np.array_equal(read(data), np.asarray(reference.convert("RGB")))


def test_alpha_is_laid_on_white() -> None:
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[:8, :, 3] = 255
    rgba[8:, :, 3] = 128
    for image_format in ("PNG", "WEBP"):
        decoded = read(encoded(Image.fromarray(rgba), image_format, lossless=True))
        assert tuple(decoded[0, 0]) == (200, 0, 0)
        half = [round(128 / 255 * value + 127 / 255 * 255) for value in (200, 0, 0)]
        assert np.abs(decoded[12, 3].astype(int) - half).max() <= 1


def test_palette_transparency_is_laid_on_white() -> None:
    image = picture(mode="P")
    data = encoded(image, "PNG", transparency=image.getpixel((0, 0)))
    assert tuple(read(data)[0, 0]) == (255, 255, 255)


def test_cmyk_jpeg_keeps_its_colours() -> None:
    red = Image.new("RGB", (32, 32), (200, 30, 40)).convert("CMYK")
    assert np.abs(read(encoded(red, "JPEG", quality=95))[16, 16].astype(int) - (200, 30, 40)).max() <= 6


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    decoded = read(encoded(Image.fromarray(ramp), "PNG"))
    assert np.array_equal(decoded[..., 0], (ramp >> 8).astype(np.uint8))


def test_16_bit_rgb_png_is_scaled() -> None:
    """Pillow cannot write one, so the chunks are put together here."""
    ramp = np.linspace(0, 65535, 16 * 16 * 3).astype(">u2").reshape(16, 16, 3)
    rows = b"".join(b"\0" + row.tobytes() for row in ramp)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.abs(read(data).astype(int) - (ramp >> 8)).max() <= 1


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.95])
def test_truncated_files_are_refused_not_half_grey(image_format: str, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)
    data = encoded(Image.fromarray(noise), image_format)
    with pytest.raises(InvalidImage):
        read(data[: int(len(data) * part)])


def test_jpeg_with_bytes_after_its_end_is_read() -> None:
    data = encoded(picture(), "JPEG")
    assert np.array_equal(read(data), read(data + b"\0" * 7))
    assert read(data + b"appended by a camera").shape == (43, 61, 3)


@pytest.mark.parametrize(
    "data",
    [b"", b"hello, this is text", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"\0" * 5000],
    ids=["empty", "text", "jpeg-start", "png-start", "webp-start", "zeros"],
)
def test_what_is_no_picture_is_invalid(data: bytes) -> None:
    with pytest.raises(InvalidImage):
        read(data)


def test_other_formats_are_named() -> None:
    for image_format in ("GIF", "BMP", "TIFF"):
        with pytest.raises(UnsupportedMedia, match=image_format):
            read(encoded(picture(), image_format))
    with pytest.raises(UnsupportedMedia, match="HEIC"):
        read(b"\0\0\0\x18ftypheic" + b"\0" * 64)


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP"])
def test_animations_are_refused(image_format: str) -> None:
    frames = [picture(), picture().rotate(90)]
    data = encoded(frames[0], image_format, save_all=True, append_images=frames[1:])
    with pytest.raises(UnsupportedMedia):
        read(data)


def flat_png(side: int) -> bytes:
    """A PNG of one colour, which zlib packs a thousandfold, written without ever holding the pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(9)
    row = b"\0" * (1 + side * 3)
    body = b"".join(packer.compress(row) for _ in range(min(side, 2000))) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_bombs_are_refused_on_their_header() -> None:
    bomb = flat_png(20_000)
    started = time.perf_counter()
    with pytest.raises(TooLarge, match="20000x20000"):
        read(bomb)
    assert time.perf_counter() - started < 0.1


def test_webp_size_is_checked_before_pillow_allocates_the_canvas() -> None:
    extended = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + (16382).to_bytes(3, "little") * 2
    data = b"RIFF" + struct.pack("<I", 4 + len(extended)) + b"WEBP" + extended
    with pytest.raises(TooLarge, match="16383x16383"):
        read(data)


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 50}, {"quality": 50, "exif": b"Exif\0\0"}])
def test_webp_headers_give_the_size_of_every_variant(options: dict[str, object]) -> None:
    data = encoded(picture(301, 77), "WEBP", **options)
    with pytest.raises(TooLarge, match="301x77"):
        read_header(data, 301 * 77 - 1)
    assert read_header(data, 301 * 77).pixels == 301 * 77


def test_a_jpeg_of_thousands_of_scans_is_refused() -> None:
    data = encoded(picture(), "JPEG", progressive=True)
    scan = data.index(b"\xff\xda")
    with pytest.raises(InvalidImage, match="scans"):
        read(data[:scan] + data[scan:-2] * 60 + data[-2:])


@pytest.mark.parametrize("size", [(1, 1), (7, 400), (400, 7)])
def test_pictures_too_small_for_a_person_are_named(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidImage, match="at least 8x8"):
        read(encoded(picture(*size), "PNG"))


def test_random_damage_never_leaves_the_error_tree() -> None:
    """Whatever arrives, the caller gets a picture or an error with a status; nothing else may escape."""
    rng = np.random.default_rng(7)
    sources = [encoded(picture(), name) for name in ("JPEG", "PNG", "WEBP")]
    for number in range(600):
        data = bytearray(sources[number % 3])
        for position in rng.integers(0, len(data), 1 + number % 9):
            data[position] = rng.integers(0, 256)
        with contextlib.suppress(InvalidImage, TooLarge, UnsupportedMedia):
            assert read(bytes(data), 100_000).ndim == 3
