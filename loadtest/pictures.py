"""What is posted: rendered scenes with known people, or pictures of a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2

from service.scenes import Scene, render_scene
from service.skeletons import COCO17

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}
_JPEG_QUALITY = 90


@dataclass(frozen=True)
class LoadPicture:
    """One encoded picture.

    Attributes:
        name: for messages.
        data: the file.
        media_type: its content type.
        scene: the truth of a rendered one, with COCO's 17 joints; None for a photograph.
    """

    name: str
    data: bytes
    media_type: str
    scene: Scene | None = None


def rendered_pictures(
    count: int, people: int | tuple[int, int], *, size: tuple[int, int] = (640, 480), seed: int = 0
) -> list[LoadPicture]:
    """Draw pictures of people who are not too small; the same seed draws the same ones."""
    pictures = []
    for index in range(count):
        scene = render_scene((seed, index), size=size, people=people, stature=(0.4, 0.9), skeleton=COCO17)
        encoded = cv2.imencode(
            ".jpg", cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
        )[1]
        pictures.append(LoadPicture(f"scene {seed}/{index}", encoded.tobytes(), "image/jpeg", scene))
    return pictures


def folder_pictures(folder: Path, count: int) -> list[LoadPicture]:
    """The first pictures of a folder, by name. Raises ValueError where there are none."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES) if folder.is_dir() else []
    if not paths:
        raise ValueError(f"no pictures ({', '.join(_SUFFIXES)}) in {folder}")
    return [LoadPicture(path.name, path.read_bytes(), _TYPES[path.suffix.lower()]) for path in paths[:count]]
