"""Things that stand around: they hide people when in front and mislead a detector when behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from service.scenes.layer import Layer, Sketch
from service.scenes.look import cloth_colour

Rng = np.random.Generator
Tone = npt.NDArray[np.float64]
_WOODS = ((122, 84, 52), (164, 122, 78), (88, 60, 42), (196, 164, 120), (226, 222, 214))
_GREENS = ((52, 92, 44), (74, 118, 58), (40, 74, 46), (104, 132, 66))


def _tone(rng: Rng, colours: tuple[tuple[int, int, int], ...]) -> Tone:
    return np.array(colours[rng.integers(len(colours))], np.float64) * rng.uniform(0.8, 1.15)


def _cloth(rng: Rng, bright: float = 0.4) -> Tone:
    return np.array(cloth_colour(rng, bright), np.float64)


def _box(sketch: Sketch, rng: Rng) -> None:
    """A crate or cupboard: front, lid, and a few seams."""
    tone = _tone(rng, _WOODS) if rng.random() < 0.6 else _cloth(rng)
    lid = rng.uniform(0.05, 0.16)
    slant = rng.uniform(-0.12, 0.12)
    left, right = max(0.0, slant), 1 + min(0.0, slant)
    sketch.polygon([(left, 0), (right, 0), (1, lid), (0, lid)], tone * 1.18)
    sketch.rectangle(0, lid, 1, 1, tone * 0.9)
    for k in range(1, int(rng.integers(2, 6))):
        y = lid + (1 - lid) * k / 5
        sketch.rectangle(0, y, 1, y + 0.008, tone * 0.6)
    if rng.random() < 0.4:
        sketch.rectangle(0.3, 0.45, 0.7, 0.62, (226, 218, 204))
    sketch.shade((0.9, 1.05, 0.95, 0.8))


def _plant(sketch: Sketch, rng: Rng) -> None:
    """A pot with long leaves that overlap."""
    green = _tone(rng, _GREENS)
    for _ in range(int(rng.integers(16, 34))):
        angle = rng.uniform(-75, 75)
        length = rng.uniform(0.16, 0.34)
        x = 0.5 + length * np.sin(np.deg2rad(angle)) * 0.9
        y = 0.72 - length * np.cos(np.deg2rad(angle)) * rng.uniform(0.5, 1.3)
        sketch.ellipse(x, y, 0.055, length, green * rng.uniform(0.7, 1.35), degrees=angle * rng.uniform(0.5, 1.1))
    pot = _tone(rng, ((156, 84, 56), (210, 204, 196), (70, 72, 78)))
    sketch.polygon([(0.3, 0.74), (0.7, 0.74), (0.64, 1), (0.36, 1)], pot)
    sketch.rectangle(0.28, 0.72, 0.72, 0.77, pot * 1.15)


def _bush(sketch: Sketch, rng: Rng) -> None:
    green = _tone(rng, _GREENS)
    for k in range(60):
        y = rng.uniform(0.2, 0.95)
        reach = 0.42 * np.sqrt(max(0.05, 1 - (1 - y) ** 2))
        x = 0.5 + rng.uniform(-reach, reach)
        sketch.ellipse(
            x, y, rng.uniform(0.04, 0.11), rng.uniform(0.05, 0.12), green * (0.6 + 0.7 * k / 60), rng.uniform(0, 180)
        )


def _railing(sketch: Sketch, rng: Rng) -> None:
    """Posts and rails with gaps: people show between them."""
    tone = _tone(rng, ((60, 62, 66), (200, 200, 198), (122, 84, 52)))
    posts = max(2, int(sketch.aspect * rng.uniform(4, 8)))
    thin = rng.uniform(0.16, 0.34) / posts
    for k in range(posts):
        x = (k + 0.5) / posts
        sketch.rectangle(x - thin / 2, 0.04, x + thin / 2, 1, tone * (0.85 + 0.3 * (k % 2)))
    sketch.rectangle(0, 0, 1, 0.09, tone * 1.15)
    sketch.rectangle(0, 0.8, 1, 0.86, tone)


def _table(sketch: Sketch, rng: Rng) -> None:
    tone = _tone(rng, _WOODS)
    thick = rng.uniform(0.05, 0.1)
    for x in (0.05, 0.87):
        sketch.rectangle(x, 0.2, x + 0.08, 1, tone * 0.7)
    sketch.polygon([(0.08, 0), (0.92, 0), (1, 0.2), (0, 0.2)], tone * 1.15)
    sketch.rectangle(0, 0.2, 1, 0.2 + thick, tone * 0.8)
    for _ in range(int(rng.integers(0, 4))):
        x = rng.uniform(0.15, 0.8)
        sketch.rectangle(x, 0.02, x + rng.uniform(0.04, 0.12), 0.14, _cloth(rng))


def _chair(sketch: Sketch, rng: Rng) -> None:
    tone = _tone(rng, _WOODS) if rng.random() < 0.5 else _cloth(rng)
    for x, top in ((0.06, 0.0), (0.84, 0.0), (0.2, 0.5), (0.7, 0.5)):
        sketch.rectangle(x, top, x + 0.09, 1, tone * 0.75)
    sketch.rectangle(0.06, 0.02, 0.93, 0.3, tone)
    sketch.polygon([(0.06, 0.48), (0.93, 0.48), (1, 0.6), (0, 0.6)], tone * 1.1)


def _pole(sketch: Sketch, rng: Rng) -> None:
    """A lamp post or sign with about a person's outline."""
    tone = _tone(rng, ((72, 74, 78), (140, 140, 138), (96, 72, 52)))
    sketch.rectangle(0.42, 0.1, 0.58, 1, tone)
    head = _cloth(rng, 0.6)
    if rng.random() < 0.5:
        sketch.ellipse(0.5, 0.1, 0.36, 0.09, head)
    else:
        sketch.rectangle(0.08, 0.0, 0.92, 0.2, head)
        sketch.rectangle(0.2, 0.07, 0.8, 0.1, head * 0.5 + 110)
    sketch.shade((1.1, 1.1, 0.8))


def _coat_stand(sketch: Sketch, rng: Rng) -> None:
    """Clothes on a stand: shoulders and a body, no head and no feet."""
    tone, wood = _cloth(rng, 0.5), _tone(rng, _WOODS)
    sketch.rectangle(0.47, 0, 0.53, 1, wood)
    sketch.polygon([(0.2, 1), (0.5, 0.93), (0.8, 1)], wood * 0.8)
    sketch.polygon([(0.5, 0.1), (0.9, 0.2), (0.84, 0.68), (0.16, 0.68), (0.1, 0.2)], tone)
    sketch.polygon([(0.5, 0.12), (0.54, 0.68), (0.46, 0.68)], tone * 0.6)
    sketch.shade((0.75, 1.1, 1.0, 0.75))


def _tree(sketch: Sketch, rng: Rng) -> None:
    bark, green = _tone(rng, ((84, 66, 50), (110, 96, 80))), _tone(rng, _GREENS)
    sketch.polygon([(0.45, 0.4), (0.55, 0.4), (0.6, 1), (0.4, 1)], bark)
    for k in range(46):
        angle, reach = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random())
        x, y = 0.5 + 0.38 * reach * np.cos(angle), 0.32 + 0.24 * reach * np.sin(angle)
        sketch.ellipse(
            x, y, rng.uniform(0.06, 0.14), rng.uniform(0.04, 0.1), green * (0.55 + 0.75 * k / 46), rng.uniform(0, 180)
        )


def _shelf(sketch: Sketch, rng: Rng) -> None:
    tone = _tone(rng, _WOODS)
    sketch.rectangle(0, 0, 1, 1, tone * 0.5)
    rows = int(rng.integers(3, 6))
    for row in range(rows):
        bottom = (row + 1) / rows
        x = 0.03
        while x < 0.9:
            wide, tall = rng.uniform(0.03, 0.09), rng.uniform(0.5, 0.85) / rows
            sketch.rectangle(x, bottom - tall, min(x + wide, 0.97), bottom, _cloth(rng, 0.6))
            x += wide + rng.uniform(0.003, 0.05)
        sketch.rectangle(0, bottom - 0.02, 1, bottom, tone)
    for x in (0.0, 0.97):
        sketch.rectangle(x, 0, x + 0.03, 1, tone)


def _window(sketch: Sketch, rng: Rng) -> None:
    frame, pane = (
        _tone(rng, ((236, 234, 230), (110, 84, 60), (70, 72, 76))),
        _tone(rng, ((176, 202, 222), (216, 226, 230), (60, 76, 96))),
    )
    sketch.rectangle(0, 0, 1, 1, frame)
    sketch.rectangle(0.06, 0.05, 0.48, 0.95, pane)
    sketch.rectangle(0.52, 0.05, 0.94, 0.95, pane * 0.96)
    sketch.polygon([(0.1, 0.6), (0.4, 0.05), (0.46, 0.05), (0.16, 0.7)], pane * 1.12)


def _door(sketch: Sketch, rng: Rng) -> None:
    tone = _tone(rng, _WOODS)
    sketch.rectangle(0, 0, 1, 1, tone * 0.7)
    sketch.rectangle(0.07, 0.03, 0.93, 1, tone)
    for y in (0.1, 0.55):
        sketch.rectangle(0.2, y, 0.8, y + 0.35, tone * 0.88)
    sketch.ellipse(0.84, 0.53, 0.04, 0.015, (214, 196, 140))


def _painting(sketch: Sketch, rng: Rng) -> None:
    sketch.rectangle(0, 0, 1, 1, _tone(rng, _WOODS))
    sketch.rectangle(0.08, 0.08, 0.92, 0.92, _cloth(rng, 0.7))
    for _ in range(int(rng.integers(1, 6))):
        (x, y), (rx, ry) = rng.uniform(0.25, 0.75, 2), rng.uniform(0.04, 0.15, 2)
        sketch.ellipse(x, y, rx, ry, _cloth(rng, 0.8), rng.uniform(0, 180))


def _building(sketch: Sketch, rng: Rng) -> None:
    tone = _tone(rng, ((170, 156, 140), (132, 92, 76), (110, 116, 124), (204, 196, 180)))
    sketch.rectangle(0, 0, 1, 1, tone)
    columns, rows = (int(n) for n in rng.integers(2, 7, 2))
    lit, dark = (206, 214, 222), tone * 0.45
    for row in range(rows):
        for column in range(columns):
            x, y = (column + 0.2) / columns, (row + 0.2) / rows
            sketch.rectangle(x, y, x + 0.6 / columns, y + 0.6 / rows, lit if rng.random() < 0.3 else dark)


def _car(sketch: Sketch, rng: Rng) -> None:
    tone = _cloth(rng, 0.6)
    sketch.polygon([(0.18, 0.42), (0.32, 0.06), (0.7, 0.06), (0.86, 0.42)], tone * 0.9)
    sketch.polygon([(0.24, 0.42), (0.35, 0.13), (0.49, 0.13), (0.49, 0.42)], (62, 74, 84))
    sketch.polygon([(0.52, 0.42), (0.52, 0.13), (0.67, 0.13), (0.79, 0.42)], (72, 84, 94))
    sketch.polygon([(0, 0.5), (0.06, 0.4), (0.94, 0.4), (1, 0.52), (1, 0.8), (0, 0.8)], tone)
    for x in (0.22, 0.78):
        sketch.ellipse(x, 0.8, 0.1, 0.2, (30, 30, 32))
        sketch.ellipse(x, 0.8, 0.05, 0.1, (150, 150, 152))


Painter = Callable[[Sketch, Rng], None]
#: Width over height of each thing, and who paints it.
OBJECTS: Mapping[str, tuple[tuple[float, float], Painter]] = {
    "box": ((0.6, 1.6), _box),
    "plant": ((0.6, 1.0), _plant),
    "bush": ((0.9, 1.8), _bush),
    "railing": ((1.5, 4.5), _railing),
    "table": ((1.3, 2.4), _table),
    "chair": ((0.45, 0.65), _chair),
    "pole": ((0.14, 0.3), _pole),
    "coat_stand": ((0.3, 0.45), _coat_stand),
    "tree": ((0.5, 0.9), _tree),
    "shelf": ((0.6, 1.3), _shelf),
    "window": ((0.7, 1.4), _window),
    "door": ((0.4, 0.55), _door),
    "painting": ((0.7, 1.5), _painting),
    "building": ((0.5, 1.4), _building),
    "car": ((2.2, 2.9), _car),
}
#: Things that may stand before people.
OCCLUDERS = ("box", "plant", "bush", "railing", "table", "chair", "pole")
STREET = ("tree", "bush", "pole", "car", "railing", "box")
ROOM = ("chair", "table", "plant", "coat_stand", "shelf", "box", "pole")


def draw_object(kind: str, box: tuple[float, float, float, float], size: tuple[int, int], rng: Rng) -> Layer:
    """Paint one of OBJECTS into ``box`` (x1, y1, x2, y2 in pixels) of a picture of ``size`` (width, height)."""
    sketch = Sketch(box, size)
    OBJECTS[kind][1](sketch, rng)
    return sketch.layer()


def standing_box(kind: str, middle: float, bottom: float, height: float, rng: Rng) -> tuple[float, float, float, float]:
    """A box of a thing's usual aspect ratio around ``middle``, standing at ``bottom``; pixels."""
    low, high = OBJECTS[kind][0]
    half = height * rng.uniform(low, high) / 2
    return middle - half, bottom - height, middle + half, bottom
