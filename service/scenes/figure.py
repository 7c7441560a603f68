"""One person drawn: limbs as shaded hulls of ellipsoids in depth order, at twice the size, then shrunk.

Drawing keeps, for each pixel, which part is on top. The same map decides which joints the person's own body
hides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from service.scenes.body import SIDES, Body, Build, Rotation, Vector, head_axes, pose_body
from service.scenes.head import paint_head
from service.scenes.layer import EMPTY_LAYER, Layer, Picture, bytes_array
from service.scenes.look import Look
from service.scenes.poses import Pose
from service.scenes.texture import TEXTURE, texture_crop
from service.scenes.wardrobe import Part, Ring, dress

_OVERSAMPLE = 2
_SHIFT = 4  # fixed-point bits of cv2.fillConvexPoly
_TURN = np.linspace(0, 2 * np.pi, 20, endpoint=False)
_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)])
# Shade of a rounded part from its rim to its ridge (128 is the part's own colour), and how far each band reaches.
_SHADES = (84, 99, 111, 121, 129, 134, 137)
_REACH = np.array([1.0, 0.93, 0.82, 0.68, 0.52, 0.36, 0.2])
_HEAD = 255


@dataclass(frozen=True)
class Figure:
    """A person of the picture.

    Attributes:
        layer: the painted silhouette, cut to the picture.
        points: 3-D points by name mapped to x, y in pixel-index coordinates, outside the picture too.
        self_hidden: names of joints that the person's own body covers.
    """

    layer: Layer
    points: dict[str, Vector]
    self_hidden: frozenset[str]


def draw_figure(
    build: Build,
    pose: Pose,
    look: Look,
    *,
    stature: float,
    foot: tuple[float, float],
    light: Vector,
    size: tuple[int, int],
    rng: np.random.Generator,
) -> Figure:
    """Pose, dress and paint one person.

    Args:
        stature: pixels a standing adult would measure.
        foot: x of the body's middle and y of its lowest point, in pixel-index coordinates.
        light: unit vector to the light.
        size: width, height of the picture.
    """
    body = pose_body(build, pose.angles, pose.orientation)
    flat = {name: point[:2] * (stature, -stature) for name, point in body.points.items()}
    xs = [p[0] for p in flat.values()]
    lowest = max(p[1] for p in flat.values())
    offset = np.array([foot[0] - (min(xs) + max(xs)) / 2, foot[1] - lowest - 0.015 * stature])
    points = {name: p + offset for name, p in flat.items()}

    parts = dress(body, look)
    canvas = _Canvas(stature * _OVERSAMPLE, light)
    canvas.offset = (offset + 0.5) * _OVERSAMPLE - 0.5
    outlines, middles, radii = canvas.outlines([ring for part in parts for ring in part.rings])
    head = canvas.head_centre(body) + np.array([[-1.0], [1.0]]) * canvas.scale * body.build.head
    extent = np.concatenate([outlines.reshape(-1, 2), head]) / _OVERSAMPLE
    low = np.maximum(np.floor(extent.min(0) - 1), 0).astype(int)
    high = np.minimum(np.ceil(extent.max(0) + 2), size).astype(int)
    width, height = (int(s) for s in high - low)
    if width <= 0 or height <= 0:
        return Figure(EMPTY_LAYER, points, frozenset())
    x0, y0 = int(low[0]), int(low[1])
    canvas.open((height * _OVERSAMPLE, width * _OVERSAMPLE), low * _OVERSAMPLE)
    outlines, middles = outlines - low * _OVERSAMPLE, middles - low * _OVERSAMPLE
    starts = np.cumsum([0, *(len(part.rings) for part in parts)])
    for index in sorted(range(len(parts)), key=lambda i: parts[i].depth):
        mine = slice(starts[index], starts[index + 1])
        if parts[index].name == "head":
            canvas.head(body, look)
        else:
            canvas.part(parts[index], outlines[mine], middles[mine], radii[mine], index + 1)
    colour = canvas.colours(parts, look, rng)
    alpha = cv2.threshold(canvas.ids, 0, 255, cv2.THRESH_BINARY)[1]
    painted = bytes_array(cv2.resize(cv2.merge([colour, alpha]), (width, height), interpolation=cv2.INTER_AREA))
    layer = Layer(painted[..., :3], painted[..., 3], (x0, y0))
    return Figure(layer, points, _self_hidden(body, points, parts, canvas.ids, (x0, y0)))


class _Canvas:
    """Part ids and shades of one person at the drawing size."""

    def __init__(self, scale: float, light: Vector) -> None:
        self.ids = np.zeros((0, 0), np.uint8)
        self.shade = np.zeros((0, 0), np.uint8)
        self.scale = scale
        self.light = light
        self.offset = np.zeros(2)
        self.head_patch: tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], tuple[int, int]] | None = None

    def open(self, shape: tuple[int, int], corner: Vector) -> None:
        """Give the canvas its size, with ``corner`` (x, y) as its first pixel."""
        self.ids = np.zeros(shape, np.uint8)
        self.shade = np.full(shape, 128, np.uint8)
        self.offset = self.offset - corner

    def head_centre(self, body: Body) -> Vector:
        """Middle of the head in canvas pixels."""
        centre: Vector = body.points["head"][:2] * (self.scale, -self.scale) + self.offset
        return centre

    def part(self, part: Part, outlines: Vector, middles: Vector, radii: Vector, index: int) -> None:
        """Fill a part's hulls, each band of its shading over the last.

        Args:
            outlines: [R, 20, 2] the outline of each of the part's ellipsoids in canvas pixels.
            middles: [R, 2] their middles.
            radii: [R] their mean radii.
        """
        bands = []
        for first in range(len(middles) - part.span + 1):
            last = first + part.span - 1
            points = outlines[first : last + 1].reshape(-1, 2).astype(np.float32)
            hull = cv2.convexHull(points).reshape(-1, 2).astype(np.float64)
            bands.append(self._bands(hull, middles[first], middles[last], float(radii[first : last + 1].max())))
            cv2.fillConvexPoly(self.ids, bands[-1][0], index, cv2.LINE_8, _SHIFT)
        for level, value in enumerate(_SHADES):
            for band in bands:
                cv2.fillConvexPoly(self.shade, band[level], value, cv2.LINE_8, _SHIFT)

    def _bands(self, hull: Vector, start: Vector, end: Vector, radius: float) -> npt.NDArray[np.int32]:
        """A hull drawn in to its ridge in steps, moved towards the light: fixed point [bands, n, 2]."""
        axis = end - start
        length = float(np.hypot(axis[0], axis[1]))
        unit = axis / length if length > 1e-6 else np.array([0.0, 1.0])
        across = np.array([-unit[1], unit[0]])
        # A long limb is shaded as a cylinder, without dark caps at its joints; one that points at the viewer as a ball.
        long = min(1.0, 0.9 * length / max(radius, 1e-6)) if length > 0 else 0.0
        light = np.array([self.light[0], -self.light[1]])
        shift = 0.5 * radius * (across * (light @ across) + unit * (light @ unit) * (1 - long))
        offsets = hull - (start + end) / 2
        along = _REACH + (1 - _REACH) * long
        bands = (
            (offsets @ unit * along[:, None])[..., None] * unit
            + (offsets @ across * _REACH[:, None])[..., None] * across
            + ((start + end) / 2 + shift * (1 - _REACH[:, None]))[:, None, :]
        )
        return np.rint(bands * (1 << _SHIFT)).astype(np.int32)

    def outlines(self, rings: Sequence[Ring]) -> tuple[Vector, Vector, Vector]:
        """Project ellipsoids: outlines [R, 20, 2] and middles [R, 2] in canvas pixels, mean radii [R]."""
        flip = self.scale * np.array([1.0, -1.0])
        centres = np.stack([ring.centre[:2] for ring in rings]) * flip + self.offset
        spread = np.stack([ring.axes[:2] for ring in rings]) * flip[:, None]
        xx, xy, yy = (spread[:, i] * spread[:, j] for i, j in ((0, 0), (0, 1), (1, 1)))
        a = np.sqrt(xx.sum(1) + 1e-6)
        b = xy.sum(1) / a
        c = np.sqrt(np.maximum(yy.sum(1) - b * b, 0) + 1e-6)
        # Rows of the Cholesky factor of the projected covariance, times the unit circle.
        outline = np.stack([a[:, None] * _CIRCLE[0], b[:, None] * _CIRCLE[0] + c[:, None] * _CIRCLE[1]], axis=-1)
        return outline + centres[:, None], centres, np.sqrt((a * a + b * b + c * c) / 2)

    def head(self, body: Body, look: Look) -> None:
        """Paint the head's pixels aside and mark them."""
        patch, mask, (x, y) = paint_head(
            self.head_centre(body),
            head_axes(body.build) * self.scale,
            body.frames["head"],
            look,
            self.light,
            self.ids.shape[:2],
        )
        self.head_patch = (patch, mask, (x, y))
        self.ids[y : y + mask.shape[0], x : x + mask.shape[1]][mask] = _HEAD

    def colours(self, parts: Sequence[Part], look: Look, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
        """Each pixel's colour: its part's, times shade and folds, with the shirt's pattern; black outside."""
        palette = np.zeros((256, 1, 3), np.uint8)
        cloth = np.zeros(256, np.uint8)
        printed = np.zeros(256, np.uint8)
        for index, part in enumerate(parts):
            palette[index + 1, 0] = part.colour
            cloth[index + 1] = part.cloth
            printed[index + 1] = part.printed
        colour = cv2.LUT(cv2.merge([self.ids] * 3), palette)
        if look.pattern != "plain":
            self._print(bytes_array(colour), printed, look, rng)
        folds = texture_crop(TEXTURE, self.ids.shape[:2], rng, zoom=max(self.scale / 500, 0.25))
        folds[cv2.LUT(self.ids, cloth) == 0] = 128
        shade = cv2.multiply(self.shade, folds, scale=1 / 128)
        colour = cv2.multiply(colour, cv2.merge([shade] * 3), scale=1 / 128)
        if self.head_patch is not None:
            patch, mask, (x, y) = self.head_patch
            view = colour[y : y + mask.shape[0], x : x + mask.shape[1]]
            on_top = mask & (self.ids[y : y + mask.shape[0], x : x + mask.shape[1]] == _HEAD)
            view[on_top] = patch[on_top]
        return bytes_array(colour)

    def _print(self, colour: Picture, printed: npt.NDArray[np.uint8], look: Look, rng: np.random.Generator) -> None:
        where = cv2.LUT(self.ids, printed)
        x, y, w, h = cv2.boundingRect(where)
        if w == 0:
            return
        s = (np.arange(x, x + w, dtype=np.float32) - np.float32(self.offset[0])) / np.float32(self.scale)
        t = (np.arange(y, y + h, dtype=np.float32) - np.float32(self.offset[1])) / np.float32(self.scale)
        step = np.float32(rng.uniform(0.02, 0.07))
        duty = rng.uniform(0.25, 0.6)
        columns, rows = (s / step) % 1 < duty, (t / step) % 1 < duty
        if look.pattern == "stripes":
            mark = np.broadcast_to(columns[None], (h, w))
        elif look.pattern == "hoops":
            mark = np.broadcast_to(rows[:, None], (h, w))
        elif look.pattern == "checks":
            mark = columns[None] ^ rows[:, None]
        elif look.pattern == "dots":
            mark = ((s / step) % 1 - 0.5)[None] ** 2 + ((t / step) % 1 - 0.5)[:, None] ** 2 < 0.1
        else:
            mark = (np.abs(s)[None] < 0.05) & (np.abs(t + 0.2)[:, None] < 0.035)
        view = colour[y : y + h, x : x + w]
        view[mark & (where[y : y + h, x : x + w] > 0)] = look.accent


# Parts under whose paint a joint counts as seen.
_CARRIERS = {
    "shoulder": ("arm", "torso"),
    "elbow": ("arm", "forearm"),
    "wrist": ("forearm", "hand"),
    "hip": ("thigh", "torso", "seat", "skirt"),
    "knee": ("thigh", "shank", "skirt"),
    "ankle": ("shank", "foot"),
    "nose": ("head", "nose", "cap"),
    "eye": ("head", "nose"),
    "ear": ("head", "ear", "hair", "cap"),
    "head_top": ("head", "hair", "cap"),
    "neck": ("neck", "torso", "hair"),
}
# A shoulder or hip shows through the trunk's paint unless it lies on the trunk's far side (cosine to the viewer).
_FAR_SIDE = -0.55
# Features of the face point away from the viewer beyond these: an ear stands out and is seen from the front.
_FACING = {"nose": -0.12, "left_eye": 0.12, "right_eye": 0.12, "left_ear": -0.3, "right_ear": -0.3}


def _self_hidden(
    body: Body, points: dict[str, Vector], parts: Sequence[Part], ids: npt.NDArray[np.uint8], origin: tuple[int, int]
) -> frozenset[str]:
    hidden: set[str] = set()
    head = body.frames["head"]
    for name, threshold in _FACING.items():
        normal = body.points[name] - body.points["head"]
        normal = head @ ((head.T @ normal) / head_axes(body.build) ** 2)
        if name.endswith("eye"):
            normal = normal + 0.3 * np.linalg.norm(normal) * head[:, 2]
        if normal[2] / np.linalg.norm(normal) < threshold:
            hidden.add(name)
    for joint in (*_FACING, "neck", "head_top", *(f"{s}_{j}" for s, _ in SIDES for j in _LIMB_JOINTS)):
        x, y = np.floor((points[joint] - origin + 0.5) * _OVERSAMPLE).astype(int)
        if not (0 <= x < ids.shape[1] and 0 <= y < ids.shape[0]) or ids[y, x] == 0:
            continue
        top = "head" if ids[y, x] == _HEAD else parts[ids[y, x] - 1].name
        side, _, bare = joint.rpartition("_") if joint.startswith(("left", "right")) else ("", "", joint)
        carriers = _CARRIERS[bare]
        own_side = not top.startswith(("left_", "right_")) or not side or top.startswith(side)
        covered = top.removeprefix("left_").removeprefix("right_") not in carriers or not own_side
        behind = top in ("torso", "seat") and side and _outward(body, side)[2] < _FAR_SIDE
        if covered or behind:
            hidden.add(joint)
    return frozenset(hidden)


_LIMB_JOINTS = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")


def _outward(body: Body, side: str) -> Vector:
    frame: Rotation = body.frames["chest"]
    return frame[:, 0] * dict(SIDES)[side]
