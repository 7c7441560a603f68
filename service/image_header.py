"""What an upload says about itself: format, size and orientation, read before a single pixel is decoded.

A 600 kB PNG can hold 14,000 x 14,000 flat pixels, so limits are checked on headers. Only JPEG, PNG and WebP are
opened at all; everything else is named (a GIF, a HEIC from a phone, a PDF) and refused.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from service.errors import InvalidImage, TooLarge, UnsupportedMedia
from service.jpeg_header import ordinary_jpeg

# Pillow's own limit would warn about pictures that the settings allow; ours is checked on every header instead.
Image.MAX_IMAGE_PIXELS = None
# Pillow warns about odd metadata in otherwise good pictures; the person who could act on it is not at this console.
warnings.filterwarnings("ignore", module="PIL")

_FORMATS = ("JPEG", "PNG", "WEBP")
_ORIENTATION_TAG = 0x0112

# First bytes of what people send by mistake, so that the answer can name it. HEIC and AVIF are told apart below.
_KNOWN = (
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"%PDF", "PDF"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"SIMPLE  =", "FITS"),
)
_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF", b"msf1": "HEIF", b"avif": "AVIF", b"avis": "AVIF"}

# A picture smaller than this holds no person; it is nearly always a broken upload or a tracking pixel.
MIN_SIDE = 8
# Files have a chunk for each 8 to 64 kB; who has more of them than this is not looked for an orientation behind them.
_MAX_CHUNKS = 10_000
# Each scan of a progressive JPEG runs over the whole picture: ordinary files have about ten, a bomb has thousands.
_MAX_SCANS = 100

# Bytes a pixel at the worst moment of decoding, as measured in :mod:`tests.service.test_decoding_memory`: a plain JPEG
# (3 stay), what else OpenCV decodes, and by Pillow pictures of one channel, others, and WebP with transparency.
_PLAIN_JPEG, _PLAIN_OTHER, _ONE_CHANNEL, _CHANNELS, _WEBP = 6, 8, 7, 10, 19
_ONE_CHANNEL_MODES = frozenset({"1", "L", "P", "I;16", "I;16B", "I;16L"})


@dataclass(frozen=True)
class ImageHeader:
    """A picture's header.

    Attributes:
        format: ``JPEG``, ``PNG`` or ``WEBP``.
        width, height: stored size in pixels, before the EXIF orientation is applied.
        mode: Pillow's mode, e.g. ``RGB``, ``L``, ``CMYK``, ``I;16``.
        orientation: EXIF orientation 1..8.
        plain: RGB or grey JPEG or WebP, complete as far as the ends of the file tell: OpenCV may decode it.
    """

    format: str
    width: int
    height: int
    mode: str
    orientation: int
    plain: bool

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.width * self.height

    @property
    def cost(self) -> int:
        """Pixels of a plain JPEG that take as much memory to decode."""
        if self.plain:
            if self.format == "JPEG":
                return self.pixels
            bytes_each = _PLAIN_OTHER
        elif self.format == "WEBP":
            bytes_each = _WEBP
        else:
            bytes_each = _ONE_CHANNEL if self.mode in _ONE_CHANNEL_MODES else _CHANNELS
        return self.pixels * bytes_each // _PLAIN_JPEG


def read_header(data: bytes, max_pixels: int, max_bytes: int | None = None) -> ImageHeader:
    """Read and check a picture's header; decodes nothing.

    Args:
        data: the whole file.
        max_pixels: limit on width x height.
        max_bytes: limit on the file; None for no limit.

    Raises:
        InvalidImage: empty, not a picture, smaller than 8 x 8 pixels.
        UnsupportedMedia: a picture of another format, or an animated one.
        TooLarge: more bytes or pixels than that.
    """
    if max_bytes is not None and len(data) > max_bytes:
        raise TooLarge(f"the picture has {len(data)} bytes; at most {max_bytes} are served")
    if not data:
        raise InvalidImage("the picture is empty (0 bytes)")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        # Pillow's WebP reader allocates the canvas when it opens the file: look at the size before.
        _check_size(*_webp_size(data), max_pixels)
    if (ordinary := ordinary_jpeg(data)) is not None:
        width, height, mode = ordinary
        _check_size(width, height, max_pixels)
        _check_scans(data)
        return ImageHeader("JPEG", width, height, mode, 1, _looks_complete("JPEG", data))
    with _open(data) as image:
        width, height = image.size
        _check_size(width, height, max_pixels)
        image_format = "JPEG" if image.format == "MPO" else str(image.format)  # phones store a JPEG with extras
        if image_format != "JPEG" and getattr(image, "n_frames", 1) > 1:
            raise UnsupportedMedia(f"animated {image_format}: send one frame as JPEG, PNG or WebP")
        if image_format == "JPEG":
            _check_scans(data)
        orientation = _orientation(image, image_format, data)
        plain = image.mode in ("RGB", "L") and _looks_complete(image_format, data)
        return ImageHeader(image_format, width, height, image.mode, orientation, plain)


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        raise _refusal(data) from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on hostile bytes
        raise InvalidImage(f"not a readable picture: {error}") from error


def _refusal(data: bytes) -> InvalidImage | UnsupportedMedia:
    for magic, name in _KNOWN:
        if data.startswith(magic):
            return UnsupportedMedia(f"{name} is not served: send JPEG, PNG or WebP")
    if data[4:8] == b"ftyp" and data[8:12] in _BRANDS:
        return UnsupportedMedia(f"{_BRANDS[data[8:12]]} is not served: send JPEG, PNG or WebP")
    return InvalidImage(f"these {len(data)} bytes are not a JPEG, PNG or WebP picture")


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise TooLarge(f"{width}x{height} pixels; at most {max_pixels} pixels are served")
    if width < MIN_SIDE or height < MIN_SIDE:
        raise InvalidImage(f"{width}x{height} pixels; at least {MIN_SIDE}x{MIN_SIDE} are needed")


def _check_scans(data: bytes) -> None:
    if data.count(b"\xff\xda") > _MAX_SCANS:
        raise InvalidImage(f"a JPEG of more than {_MAX_SCANS} scans is refused")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Canvas size from a WebP's first chunk (VP8X, lossless VP8L or lossy VP8), RFC 9649."""
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        raise InvalidImage("the WebP ends inside its header")
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", body[6:10])
        return width & 0x3FFF, height & 0x3FFF
    raise InvalidImage(f"a WebP whose first chunk is {kind!r}")


def _looks_complete(image_format: str, data: bytes) -> bool:
    """The file has its end mark; without it Pillow decides (OpenCV before 5 fills the rest with grey)."""
    if image_format == "JPEG":
        return data.rstrip(b"\0").endswith(b"\xff\xd9")
    # A PNG is Pillow's: it is stricter about checksums, and OpenCV is only a tenth faster.
    return image_format == "WEBP" and len(data) >= 8 + int.from_bytes(data[4:8], "little")


def _orientation(image: Image.Image, image_format: str, data: bytes) -> int:
    try:
        value = (_png_exif(image, data) if image_format == "PNG" else image.getexif()).get(_ORIENTATION_TAG, 1)
    except MemoryError:
        raise
    except Exception:  # a broken EXIF block does not make the pixels unreadable
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _png_exif(image: Image.Image, data: bytes) -> Image.Exif:
    """A PNG's EXIF block, wherever it stands. Pillow's own way to one behind the pixels is to decode them all."""
    if b"eXIf" in data and "exif" not in image.info:
        block = _png_chunk(data, b"eXIf")
        if block is not None:
            image.info["exif"] = b"Exif\0\0" + block
    if "exif" in image.info or "Raw profile type exif" in image.info:
        return Image.Image.getexif(image)  # not the PNG reader's, which decodes
    return Image.Exif()


def _png_chunk(data: bytes, kind: bytes) -> bytes | None:
    """The body of the first chunk of that kind."""
    first = 8
    for _ in range(_MAX_CHUNKS):
        length, found = data[first : first + 4], data[first + 4 : first + 8]
        if len(found) < 4:
            return None
        end = first + 8 + int.from_bytes(length, "big")
        if found == kind:
            return data[first + 8 : end]
        first = end + 4
    return None
