"""The header of an ordinary JPEG file in microseconds: most uploads are one, and Pillow takes ten times as long.

Whatever is out of the ordinary is left to Pillow: EXIF and XMP (which may turn the picture), CMYK, 12 bits, arithmetic
coding, more than a few dozen segments. So the time is bounded, and the event loop need not hand it to a thread.
"""

from __future__ import annotations

_SEGMENTS = 32
_START, _SCAN, _APP1 = 0xD8, 0xDA, 0xE1
# Baseline, extended and progressive, Huffman coded.
_FRAMES = (0xC0, 0xC1, 0xC2)
# Tables (quantization, Huffman, restart interval), comments and applications' segments.
_PASSED = frozenset({0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)} - {_APP1})
# Pillow's names for so many components.
_MODES = {1: "L", 3: "RGB"}


def ordinary_jpeg(data: bytes) -> tuple[int, int, str] | None:
    """Width, height and Pillow's mode of an ordinary JPEG file; None for everything else."""
    if data[:2] != bytes((0xFF, _START)):
        return None
    found: tuple[int, int, str] | None = None
    first = 2
    for _ in range(_SEGMENTS):
        if len(data) < first + 10 or data[first] != 0xFF:
            return None
        marker, length = data[first + 1], data[first + 2] << 8 | data[first + 3]
        if marker == _SCAN:
            return found
        if marker in _FRAMES:
            mode = _MODES.get(data[first + 9])
            if found is not None or mode is None or data[first + 4] != 8 or length != 8 + 3 * data[first + 9]:
                return None
            height, width = data[first + 5] << 8 | data[first + 6], data[first + 7] << 8 | data[first + 8]
            found = width, height, mode
        elif marker not in _PASSED or length < 2:
            return None
        first += 2 + length
    return None
