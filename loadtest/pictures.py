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
# Size, people and format of the pictures of a mixed load, the usual ones more often.
_KINDS = (
    ((640, 480), 3, ".jpg"),
    ((320, 240), 1, ".jpg"),
    ((480, 640), 2, ".jpg"),
    ((1280, 960), 4, ".jpg"),
    ((640, 480), 1, ".png"),
    ((640, 480), 0, ".jpg"),
    ((800, 600), 5, ".jpg"),
    ((1920, 1080), 2, ".jpg"),
    ((640, 480), 2, ".webp"),
    ((640, 480), 6, ".jpg"),
    ((160, 120), 1, ".jpg"),
    ((1080, 1920), 1, ".jpg"),
)


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


def mixed_pictures(count: int, *, seed: int = 0, largest: int = 1920) -> list[LoadPicture]:
    """Draw pictures as callers send them: several sizes, nobody to six people, JPEG and some PNG and WebP.

    Args:
        count: how many; they take turns through the kinds, so that 12 hold each.
        seed: the same one draws the same ones.
        largest: longest side in pixels; larger ones are left out.
    """
    kinds = [kind for kind in _KINDS if max(kind[0]) <= largest]
    pictures = []
    for index in range(count):
        size, people, suffix = kinds[index % len(kinds)]
        scene = render_scene((seed, index), size=size, people=people, stature=(0.4, 0.9), skeleton=COCO17)
        parameters = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if suffix == ".jpg" else []
        coded = cv2.imencode(suffix, cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR), parameters)[1].tobytes()
        name = f"mixed {seed}/{index} {size[0]}x{size[1]}{suffix}"
        pictures.append(LoadPicture(name, coded, _TYPES[suffix], scene))
    return pictures


def folder_pictures(folder: Path, count: int) -> list[LoadPicture]:
    """The first pictures of a folder, by name. Raises ValueError where there are none."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES) if folder.is_dir() else []
    if not paths:
        raise ValueError(f"no pictures ({', '.join(_SUFFIXES)}) in {folder}")
    return [LoadPicture(path.name, path.read_bytes(), _TYPES[path.suffix.lower()]) for path in paths[:count]]
