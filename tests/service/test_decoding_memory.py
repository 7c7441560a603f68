"""Memory of decoding: each kind of file takes what its header's ``cost`` says, or the pixel budget bounds nothing."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.image_header import _PLAIN_JPEG, read_header
from service.images import decode

SIDE = 2400  # 5.8 megapixels: what the interpreter itself takes meanwhile is lost in them
KINDS = (
    "JPEG RGB", "JPEG CMYK", "PNG RGB", "PNG RGBA", "PNG L", "PNG P", "PNG I;16", "PNG transparency", "PNG turned",
    "WEBP RGB", "WEBP lossless", "WEBP RGBA",
)  # fmt: skip
# Bytes that decoding a file adds to the most memory that the process ever had.
MEASURED = """
import sys
import cv2
from service.image_header import read_header
from service.images import decode

def memory(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name)) * 1024

cv2.setNumThreads(1)
small, large = (open(name, "rb").read() for name in sys.argv[1:])
decode(small, read_header(small, 10**8))
before = memory("VmHWM")
header = read_header(large, 10**8)
opened = memory("VmHWM")
pixels = decode(large, header)
print(opened - before, memory("VmHWM") - before)
"""


def file(kind: str, side: int) -> bytes:
    coarse = np.random.default_rng(0).integers(0, 255, (side // 8, side // 8, 3), np.uint8)
    image = Image.fromarray(np.repeat(np.repeat(coarse, 8, 0), 8, 1))
    container, _, mode = kind.partition(" ")
    options: dict[str, object] = {"compress_level": 1} if container == "PNG" else {}
    if container == "WEBP":
        options = {"method": 0, "quality": 0, "lossless": mode != "RGB"}
    if mode == "turned":
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6  # type: ignore[index]
    elif mode == "transparency":
        options["transparency"] = (1, 2, 3)
    elif mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)
    elif mode != "lossless":
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, container, **options)
    return buffer.getvalue()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status")
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_takes_what_the_header_says(kind: str, tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(file(kind, 64))
    large.write_bytes(file(kind, SIDE))
    header = read_header(large.read_bytes(), 10**8)
    command = [sys.executable, "-c", MEASURED, str(small), str(large)]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout.split()
    opening, decoding = (int(number) / header.pixels for number in told)
    assert opening < 1.2, "a header is read before anything counts"
    charged = _PLAIN_JPEG * header.cost / header.pixels
    assert decoding < charged + 0.2, f"{decoding:.1f} bytes a pixel, {charged:.1f} are charged"
    assert decoding > 0.5 * charged, "others would wait for what nobody takes"


@pytest.mark.parametrize("kind", KINDS)
def test_large_pictures_have_the_pixels_of_small_ones(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are converted in strips: no row may be lost, and none may look different."""
    data = file(kind, 160)
    whole = decode(data, read_header(data, 10**8))
    monkeypatch.setattr("service.images._STRIP", 160 * 7)
    assert np.array_equal(decode(data, read_header(data, 10**8)), whole)


CAPPED = """
import resource, sys
from service.errors import InvalidImage
from service.image_header import read_header
from service.images import decode

data = open(sys.argv[1], "rb").read()
header = read_header(data, 10**8)
with open("/proc/self/statm") as file:
    mapped = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + 4 * header.pixels, -1))
try:
    decode(data, header)
except MemoryError:
    print("out of memory")
except InvalidImage as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
@pytest.mark.parametrize("kind", ["PNG RGBA", "JPEG RGB"])
def test_too_little_memory_is_not_the_pictures_fault(kind: str, tmp_path: Path) -> None:
    """As a refusal of the picture it would hide from whoever watches the service, and from the fuzz."""
    path = tmp_path / "picture"
    path.write_bytes(file(kind, SIDE))
    command = [sys.executable, "-c", CAPPED, str(path)]
    run = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    assert run.stdout.strip() == "out of memory"
