"""What is behind the people: a room, a street, or no place at all."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from service.scenes.layer import Picture, bytes_array
from service.scenes.look import cloth_colour
from service.scenes.objects import OBJECTS, ROOM, STREET, draw_object, standing_box
from service.scenes.texture import ROUGH, texture_crop

Rng = np.random.Generator


def draw_backdrop(size: tuple[int, int], horizon: float, rng: Rng) -> Picture:
    """Paint a background.

    Args:
        size: width, height in pixels.
        horizon: y in pixels of the line where wall or sky meets the ground.

    Returns:
        RGB uint8 [height, width, 3].
    """
    kind = rng.choice(["room", "street", "nowhere"], p=[0.42, 0.42, 0.16])
    if kind == "nowhere":
        return _nowhere(size, rng)
    picture = _room(size, horizon, rng) if kind == "room" else _street(size, horizon, rng)
    grain = texture_crop(ROUGH, picture.shape[:2], rng, zoom=size[1] / rng.uniform(400, 900))
    return bytes_array(cv2.multiply(picture, cv2.merge([grain] * 3), scale=1 / 128))


def _blend(size: tuple[int, int], rows: tuple[float, float], top: npt.ArrayLike, bottom: npt.ArrayLike) -> Picture:
    """A vertical run of colour from ``top`` at ``rows[0]`` to ``bottom`` at ``rows[1]``."""
    y = np.arange(size[1], dtype=np.float32)
    share = np.clip((y - rows[0]) / max(rows[1] - rows[0], 1.0), 0, 1)[:, None]
    column = np.asarray(top, np.float32) * (1 - share) + np.asarray(bottom, np.float32) * share
    return np.repeat(np.clip(column, 0, 255).astype(np.uint8)[:, None], size[0], axis=1)


def _room(size: tuple[int, int], horizon: float, rng: Rng) -> Picture:
    width, height = size
    wall = np.array(cloth_colour(rng, 0.35), np.float64) * 0.45 + rng.uniform(80, 140)
    floor = np.array(((124, 92, 62), (168, 160, 148), (96, 98, 104), (150, 118, 84))[rng.integers(4)], np.float64)
    picture = _blend(size, (0, horizon), wall * 1.05, wall * 0.9)
    line = int(np.clip(horizon, 1, height - 1))
    picture[line:] = _blend(size, (line, height), floor * 0.75, floor * 1.1)[line:]
    if rng.random() < 0.6:  # planks or tiles run to the vanishing point
        for k in range(-14, 15):
            cv2.line(
                picture,
                (width // 2 + k * width // 28, line),
                (width // 2 + k * width // 5, height),
                (floor * 0.66).tolist(),
                1,
                cv2.LINE_AA,
            )
    if rng.random() < 0.35:  # bricks or wallpaper
        step = max(6, height // int(rng.integers(12, 40)))
        for y in range(0, line, step):
            cv2.line(picture, (0, y), (width, y), (wall * 0.86).tolist(), 1)
        for row, y in enumerate(range(0, line, step)):
            picture[y : min(y + step, line), (row % 2) * step :: 2 * step] = (wall * 0.86).clip(0, 255)
    cv2.rectangle(picture, (0, max(0, line - height // 40)), (width, line), (wall * 0.6).tolist(), -1)
    for _ in range(int(rng.integers(0, 4))):
        kind = str(rng.choice(["window", "painting", "door"]))
        tall = horizon * (rng.uniform(0.75, 0.95) if kind == "door" else rng.uniform(0.25, 0.6))
        bottom = horizon if kind == "door" else horizon * rng.uniform(0.55, 0.8)
        draw_object(kind, standing_box(kind, rng.uniform(0, width), bottom, tall, rng), size, rng).lay_over(picture)
    _scatter(picture, size, horizon, ROOM, int(rng.integers(0, 5)), rng)
    return picture


def _street(size: tuple[int, int], horizon: float, rng: Rng) -> Picture:
    width, height = size
    sky = np.array(((120, 166, 214), (178, 190, 200), (206, 204, 196), (232, 196, 160))[rng.integers(4)], np.float64)
    ground = np.array(((92, 116, 62), (116, 116, 114), (168, 154, 124), (140, 132, 122))[rng.integers(4)], np.float64)
    picture = _blend(size, (0, horizon), sky * 0.92, sky * 0.5 + 112)
    line = int(np.clip(horizon, 1, height - 1))
    for _ in range(int(rng.integers(0, 6))):
        tall = horizon * rng.uniform(0.4, 1.2)
        draw_object(
            "building", standing_box("building", rng.uniform(0, width), horizon, tall, rng), size, rng
        ).lay_over(picture)
    if rng.random() < 0.5:  # hills or a hedge along the horizon
        xs = np.linspace(0, width, 30)
        tops = horizon - np.abs(np.cumsum(rng.normal(0, height / 60, 30)))
        outline = np.concatenate([np.stack([xs, tops], 1), [[width, horizon], [0, horizon]]]).astype(np.int32)
        cv2.fillPoly(picture, [outline], (70, 96, 66), cv2.LINE_AA)
    picture[line:] = _blend(size, (line, height), ground * 0.85, ground * 1.12)[line:]
    if rng.random() < 0.4:
        road = np.array(
            [
                (width * rng.uniform(0.3, 0.7), line),
                (width * rng.uniform(-0.8, 0.3), height),
                (width * rng.uniform(0.7, 1.8), height),
            ]
        )
        cv2.fillPoly(picture, [road.astype(np.int32)], (104, 104, 106), cv2.LINE_AA)
    _scatter(picture, size, horizon, STREET, int(rng.integers(0, 6)), rng)
    return picture


def _nowhere(size: tuple[int, int], rng: Rng) -> Picture:
    """Clutter without sense: colour runs, blobs, bars and strong texture."""
    width, height = size
    picture = _blend(size, (0, height), cloth_colour(rng, 0.6), cloth_colour(rng, 0.6))
    for _ in range(int(rng.integers(0, 26))):
        kind = str(rng.choice(list(OBJECTS)))
        tall = height * rng.uniform(0.08, 0.6)
        box = standing_box(kind, rng.uniform(0, width), rng.uniform(0.1, 1.1) * height, tall, rng)
        draw_object(kind, box, size, rng).lay_over(picture)
    if rng.random() < 0.5:
        grain = texture_crop(ROUGH, (height, width), rng, zoom=rng.uniform(0.5, 4))
        picture = bytes_array(cv2.multiply(picture, cv2.merge([grain] * 3), scale=1 / 110))
    return picture


def _scatter(
    picture: Picture, size: tuple[int, int], horizon: float, kinds: tuple[str, ...], count: int, rng: Rng
) -> None:
    """Things on the ground, the far ones first."""
    width, height = size
    for bottom in np.sort(rng.uniform(horizon + 0.02 * height, horizon + 0.6 * (height - horizon), count)):
        kind = str(rng.choice(kinds))
        tall = (bottom - horizon + 0.12 * height) * rng.uniform(0.5, 1.3) * (2.0 if kind in ("tree", "pole") else 1.0)
        draw_object(kind, standing_box(kind, rng.uniform(0, width), bottom, tall, rng), size, rng).lay_over(picture)
