"""Pictures of every kind that people send, and some that only an attacker would: what the fuzz begins from.

All are made here, from rendered scenes and by hand: modes, EXIF orientations, colour profiles, animations, extreme
sizes, and headers that promise more than there is.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from loadtest.malformed import png_bomb
from service.scenes import render_scene

_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Specimen:
    """An encoded file.

    Attributes:
        name: what it is.
        data: its bytes.
        media_type: the honest content type.
        statuses: what a sound service may answer to it as it is.
    """

    name: str
    data: bytes
    media_type: str
    statuses: frozenset[int]


_GOOD = frozenset({200})
_BAD = frozenset({400})
_LARGE = frozenset({413})
_OTHER = frozenset({415})


def corpus() -> list[Specimen]:
    """All specimens, always the same ones."""
    return [*_jpegs(), *_pngs(), *_webps(), *_others(), *_extremes(), *_bombs()]


def _scene(size: tuple[int, int] = (160, 120)) -> Image.Image:
    return Image.fromarray(render_scene(7, size=size, people=1, stature=(0.6, 0.9)).image)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _jpegs() -> Iterator[Specimen]:
    scene = _scene()
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[_ORIENTATION] = orientation
        yield Specimen(f"JPEG, EXIF {orientation}", _encoded(scene, "JPEG", exif=exif), "image/jpeg", _GOOD)
    exif = Image.Exif()
    exif[_ORIENTATION] = 9
    yield Specimen("JPEG, EXIF 9", _encoded(scene, "JPEG", exif=exif), "image/jpeg", _GOOD)
    made = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = made[:24] + bytes(12) + made[36:]  # without the moment at which it was made: always the same bytes
    variants: dict[str, dict[str, Any]] = {
        "progressive": {"progressive": True},
        "4:4:4": {"subsampling": 0, "quality": 95},
        "quality 1": {"quality": 1},
        "ICC": {"icc_profile": profile},
        "broken ICC": {"icc_profile": b"\xff" * 5000},
        "comment": {"comment": b"c" * 60_000},
        "restart markers": {"restart_marker_blocks": 3},
    }
    for name, options in variants.items():
        yield Specimen(f"JPEG, {name}", _encoded(scene, "JPEG", **options), "image/jpeg", _GOOD)
    for mode in ("L", "CMYK", "YCbCr"):
        yield Specimen(f"JPEG, {mode}", _encoded(scene.convert(mode), "JPEG"), "image/jpeg", _GOOD)


def _pngs() -> Iterator[Specimen]:
    scene = _scene()
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1"):
        yield Specimen(f"PNG, {mode}", _encoded(scene.convert(mode), "PNG"), "image/png", _GOOD)
    deep = Image.fromarray(np.asarray(scene.convert("L"), np.uint16) * 257)
    yield Specimen("PNG, 16 bits", _encoded(deep, "PNG"), "image/png", _GOOD)
    clear = scene.convert("P")
    yield Specimen("PNG, palette with a transparent colour", _encoded(clear, "PNG", transparency=3), "image/png", _GOOD)
    text = PngInfo()
    text.add_text("Comment", "x" * 10_000, zip=True)
    yield Specimen("PNG, text", _encoded(scene, "PNG", pnginfo=text), "image/png", _GOOD)
    frames = [_scene(), _scene((160, 120)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    animated = _encoded(frames[0], "PNG", save_all=True, append_images=frames[1:], duration=100)
    yield Specimen("animated PNG", animated, "image/png", _OTHER)


def _webps() -> Iterator[Specimen]:
    scene = _scene()
    yield Specimen("WebP", _encoded(scene, "WEBP"), "image/webp", _GOOD)
    yield Specimen("WebP, lossless", _encoded(scene, "WEBP", lossless=True), "image/webp", _GOOD)
    yield Specimen("WebP, alpha", _encoded(scene.convert("RGBA"), "WEBP", lossless=True), "image/webp", _GOOD)
    other = scene.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    animated = _encoded(scene, "WEBP", save_all=True, append_images=[other], duration=100)
    yield Specimen("animated WebP", animated, "image/webp", _OTHER)


def _others() -> Iterator[Specimen]:
    scene = _scene()
    other = scene.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    animated = _encoded(scene.convert("P"), "GIF", save_all=True, append_images=[other.convert("P")])
    for name, data in {
        "GIF": _encoded(scene, "GIF"),
        "animated GIF": animated,
        "BMP": _encoded(scene, "BMP"),
        "TIFF": _encoded(scene, "TIFF"),
    }.items():
        yield Specimen(name, data, "image/jpeg", _OTHER)
    for name, data in {
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "HTML": b"<!doctype html><title>no picture</title>",
        "nothing": b"",
        "one byte": b"\xff",
        "JPEG's first bytes": b"\xff\xd8\xff",
        "PNG's first bytes": b"\x89PNG\r\n\x1a\n",
    }.items():
        yield Specimen(name, data, "image/jpeg", _BAD)


def _extremes() -> Iterator[Specimen]:
    grey = (128, 128, 128)
    yield Specimen("1x1", _encoded(Image.new("RGB", (1, 1), grey), "PNG"), "image/png", _BAD)
    yield Specimen("8x8", _encoded(Image.new("RGB", (8, 8), grey), "JPEG"), "image/jpeg", _GOOD)
    for size in ((65_500, 8), (8, 65_500)):  # libjpeg's own limit; the format's is 65,535
        data = _encoded(Image.new("RGB", size, grey), "JPEG")
        yield Specimen(f"JPEG, {size[0]}x{size[1]}", data, "image/jpeg", _GOOD)
        largest = _with_jpeg_size(data, *(65_535 if side == 65_500 else side for side in size))
        yield Specimen(f"JPEG, {size[0]}x{size[1]} said to be 65535", largest, "image/jpeg", frozenset({200, 400}))
    for size in ((65_535, 8), (8, 65_535)):
        data = _encoded(Image.new("RGB", size, grey), "PNG")
        yield Specimen(f"PNG, {size[0]}x{size[1]}", data, "image/png", _GOOD)
    yield Specimen("JPEG, 65500x1", _encoded(Image.new("RGB", (65_500, 1), grey), "JPEG"), "image/jpeg", _BAD)


def _with_jpeg_size(data: bytes, width: int, height: int) -> bytes:
    """A baseline JPEG whose header says another size."""
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]


def _bombs() -> Iterator[Specimen]:
    yield Specimen("PNG that promises 900 million pixels", png_bomb(30_000, 30_000), "image/png", _LARGE)
    yield Specimen("PNG that promises 2^62 pixels", png_bomb(2**31 - 1, 2**31 - 1), "image/png", frozenset({400, 413}))
    flat = Image.new("1", (20_000, 20_000))
    yield Specimen("PNG of 400 million white pixels", _encoded(flat, "PNG"), "image/png", _LARGE)
    yield Specimen("PNG of 49 million pixels", _encoded(Image.new("1", (7_000, 7_000)), "PNG"), "image/png", _GOOD)
    # Those that take most memory for each pixel, as large as they may be.
    for name, colour, depth in (("RGBA", 6, 8), ("RGBA of 16 bits", 6, 16), ("16 bits", 0, 16)):
        data = _flat_png(7_000, 7_000, colour, depth)
        yield Specimen(f"PNG of 49 million pixels, {name}", data, "image/png", _GOOD)
    huge = _with_jpeg_size(_encoded(_scene(), "JPEG"), 65_535, 65_535)
    yield Specimen("JPEG that promises 4 thousand million pixels", huge, "image/jpeg", _LARGE)
    scan = _encoded(_scene(), "JPEG", progressive=True)
    last = scan.rindex(b"\xff\xda")
    many = scan[:last] + scan[last:-2] * 300 + scan[-2:]
    yield Specimen("JPEG of 300 scans", many, "image/jpeg", _BAD)
    chunk = _chunk(b"iCCP", b"bomb\0\0" + zlib.compress(bytes(20_000_000)))
    picture = _encoded(_scene(), "PNG")
    yield Specimen(
        "PNG, 20 MB of colour profile", picture[:33] + chunk + picture[33:], "image/png", frozenset({200, 400})
    )
    yield Specimen(
        "PNG, 5000 empty chunks",
        picture[:33] + _chunk(b"zTXt", b"") * 5_000 + picture[33:],
        "image/png",
        frozenset({200, 400}),
    )
    exif = Image.Exif()
    exif[_ORIENTATION] = 6
    behind = picture[:-12] + _chunk(b"eXIf", exif.tobytes()[6:]) + picture[-12:]
    yield Specimen("PNG, EXIF behind the pixels", behind, "image/png", _GOOD)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _flat_png(width: int, height: int, colour: int, depth: int) -> bytes:
    """A PNG of zeros, whose pixels are never all in memory. Colour: 0 grey, 2 RGB, 6 RGBA."""
    channels = {0: 1, 2: 3, 6: 4}[colour]
    packer, row = zlib.compressobj(1), bytes(1 + width * channels * depth // 8)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")
