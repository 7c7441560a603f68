"""A painted head: an ellipsoid seen from any side, with hair, brows, eyes, mouth and nose where they belong."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from service.scenes.body import EYE, Rotation, Vector
from service.scenes.look import Look

_AMBIENT, _DIFFUSE = 0.62, 0.52


def paint_head(
    centre: Vector, axes: Vector, frame: Rotation, look: Look, light: Vector, shape: tuple[int, int]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], tuple[int, int]]:
    """Paint one head by casting a ray for each pixel.

    Args:
        centre: x, y in pixels of the canvas (y down).
        axes: semi-axes in pixels: width, height, depth.
        frame: head axes (left, up, forward) in the world (y up, z to the viewer).
        light: unit vector to the light, in the world.
        shape: height, width of the canvas; the head is cut off at its rim.

    Returns:
        RGB uint8 [h, w, 3], mask bool [h, w] of the head's pixels, and x, y of the patch in the canvas.
    """
    reach = float(axes.max()) + 1
    x0, y0 = max(0, int(centre[0] - reach)), max(0, int(centre[1] - reach))
    x1, y1 = min(shape[1], int(centre[0] + reach) + 2), min(shape[0], int(centre[1] + reach) + 2)
    if x1 <= x0 or y1 <= y0:
        return np.zeros((0, 0, 3), np.uint8), np.zeros((0, 0), np.bool_), (0, 0)
    dx = np.arange(x0, x1, dtype=np.float32) - np.float32(centre[0])
    dy = np.float32(centre[1]) - np.arange(y0, y1, dtype=np.float32)
    to_sphere = (frame / axes).T.astype(np.float32)  # world offset to the unit sphere of the head
    flat = to_sphere[:, 0, None, None] * dx[None, None, :] + to_sphere[:, 1, None, None] * dy[None, :, None]
    along = to_sphere[:, 2]
    a = along @ along
    b = np.tensordot(along, flat, 1)
    inside = b * b - a * ((flat * flat).sum(0) - 1)
    mask = inside >= 0
    depth = (-b + np.sqrt(np.maximum(inside, 0))) / a
    u, v, w = flat + along[:, None, None] * depth

    toward = (frame.T @ light / axes).astype(np.float32)  # light on the normal S^-1 q, before its norm
    scale = (1.0 / axes).astype(np.float32)
    norm = np.sqrt((scale[0] * u) ** 2 + (scale[1] * v) ** 2 + (scale[2] * w) ** 2) + 1e-9
    shade = _AMBIENT + _DIFFUSE * np.maximum(0, (toward[0] * u + toward[1] * v + toward[2] * w) / norm)

    colour = np.empty((*mask.shape, 3), np.float32)
    colour[:] = look.skin
    _paint_face(colour, u, v, w, look)
    _paint_hair(colour, u, v, w, look)
    colour *= shade[..., None]
    return np.clip(colour, 0, 255).astype(np.uint8), mask, (x0, y0)


def _paint_face(colour: npt.NDArray[np.float32], u: Vector, v: Vector, w: Vector, look: Look) -> None:
    """Features on the front half (w > 0), at the places the landmarks have."""
    skin, hair = np.array(look.skin, np.float32), np.array(look.hair, np.float32)
    front = w > 0.15
    side = np.abs(u)
    eye = ((side - EYE[0]) / 0.17) ** 2 + ((v - EYE[1]) / 0.085) ** 2
    colour[front & (eye < 2.2)] = skin * 0.82
    colour[front & (eye < 1)] = (238, 236, 232)
    colour[front & ((side - EYE[0]) ** 2 + (v - EYE[1]) ** 2 < 0.0075)] = (46, 34, 28)
    colour[
        front & (np.abs(side - EYE[0]) < 0.22) & (np.abs(v - EYE[1] - 0.19 + 0.25 * (side - EYE[0]) ** 2) < 0.035)
    ] = hair * 0.7 + skin * 0.15
    # The nose: a dark flank away from the middle and a shadow under the tip.
    colour[front & (side > 0.07) & (side < 0.14) & (v < 0.1) & (v > -0.2)] = skin * 0.88
    colour[front & (side < 0.15) & (np.abs(v + 0.25) < 0.035)] = skin * 0.66
    if look.beard:
        jaw = (v < -0.3) & (w > -0.1) & ~((side < 0.26) & (np.abs(v + 0.5) < 0.1))
        colour[jaw] = hair * 0.85 + skin * 0.15
    lips = (side / 0.3) ** 2 + ((v + 0.52) / 0.075) ** 2 < 1
    colour[front & lips] = skin * (0.78, 0.5, 0.5)
    colour[front & (side < 0.27) & (np.abs(v + 0.52) < 0.015)] = skin * 0.4
    colour[front & (side < 0.5) & (side > 0.2) & (v < 0) & (v > -0.35) & (eye > 2.2)] *= (1.02, 0.97, 0.96)
    if look.glasses:
        rim = ((side - EYE[0]) / 0.27) ** 2 + ((v - EYE[1]) / 0.2) ** 2
        colour[front & (rim < 1) & (rim > 0.68)] = (32, 30, 32)
        colour[(w > -0.2) & ((side < 0.13) | (side > 0.66)) & (np.abs(v - EYE[1] - 0.03) < 0.03)] = (32, 30, 32)


def _paint_hair(colour: npt.NDArray[np.float32], u: Vector, v: Vector, w: Vector, look: Look) -> None:
    """Hair above a line that falls from the forehead over the temples to the nape; a cap above a level line."""
    if look.hair_style == "cap":
        colour[v > 0.42 - 0.12 * w] = look.accent
        under = (v <= 0.42 - 0.12 * w) & (v > np.interp(w, [-1, -0.2, 0.15], [-0.55, -0.2, 0.42]))
        colour[under] = look.hair
        return
    if look.hair_style == "bald":
        return
    low = -0.95 if look.hair_style in ("long", "bun") else -0.6
    line = np.interp(w, [-1.0, -0.35, 0.15, 0.55, 1.0], [low, low, 0.1, 0.5, 0.66])
    line += 0.06 * np.sin(9 * u + 2)  # a fringe is never a ruled line
    strands = 1 + 0.1 * np.sin(26 * u + 7 * w)
    covered = v > line
    colour[covered] = np.array(look.hair, np.float32) * strands[covered, None]
