"""Sizes of pictures whose annotation files do not give them: from the header, nothing is decoded."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from training.datasets.coco import DatasetError

_ORIENTATION = 0x0112
# EXIF orientations that turn a picture by a quarter.
_TURNED = (5, 6, 7, 8)


def picture_size(path: Path) -> tuple[int, int]:
    """Upright width and height in pixels, EXIF applied. Raises DatasetError with the path."""
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            turned = picture.getexif().get(_ORIENTATION) in _TURNED
    except FileNotFoundError:
        raise DatasetError(f"{path}: missing") from None
    except (OSError, UnidentifiedImageError) as error:
        raise DatasetError(f"{path}: not a picture: {error}") from error
    return (height, width) if turned else (width, height)
