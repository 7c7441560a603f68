"""A posed body dressed: the parts to paint, each a chain of ellipsoids with a colour and a depth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from service.scenes.body import SIDES, Body, Rotation, Vector, head_axes
from service.scenes.look import Colour, Look


@dataclass(frozen=True)
class Ring:
    """An ellipsoid: its centre and, as columns, its three semi-axes, in statures."""

    centre: Vector
    axes: Rotation


@dataclass(frozen=True)
class Part:
    """Something painted in one colour.

    Attributes:
        name: what it is, with its side.
        rings: ellipsoids; the part is the union of the convex hulls of each ``span`` rings in a row.
        depth: nearer parts have more.
        cloth: whether it shows folds.
        printed: whether it shows the shirt's pattern.
    """

    name: str
    rings: tuple[Ring, ...]
    colour: Colour
    depth: float
    cloth: bool = False
    printed: bool = False
    span: int = 2


_UNIT = np.eye(3)


def _ball(centre: Vector, radius: float) -> Ring:
    return Ring(centre, _UNIT * radius)


def _oval(centre: Vector, frame: Rotation, axes: tuple[float, float, float]) -> Ring:
    return Ring(centre, frame * np.array(axes))


def dress(body: Body, look: Look) -> list[Part]:
    """All parts of a person, in no order. Biases on depth settle what touches: shirt over hips, arm over trunk."""
    parts = [*_trunk(body, look), *_head(body, look)]
    for side, _ in SIDES:
        parts += _arm(body, look, side)
        parts += _leg(body, look, side)
    return parts


def _trunk(body: Body, look: Look) -> list[Part]:
    build, points, frames = body.build, body.points, body.frames
    chest, abdomen, pelvis = frames["chest"], frames["abdomen"], frames["pelvis"]
    loose = (look.looseness - 1) * 0.4 + 1
    girth = build.girth
    wide, hips = build.shoulder_width, build.hip_width
    top = _oval(points["neck"] + chest @ np.array([0, -0.026, -0.004]), chest, (wide * 0.8, 0.026, 0.042 * girth))
    ribs = _oval(
        points["neck"] + chest @ np.array([0, -0.1, 0.008]),
        chest,
        (wide * 0.88 * girth**0.5, 0.05, 0.066 * girth * loose),
    )
    waist = _oval(
        points["waist"], abdomen, ((hips * 0.55 + wide * 0.38) * girth * loose, 0.05, 0.06 * girth**1.3 * loose)
    )
    low = _oval(
        points["pelvis"] + pelvis @ np.array([0, 0.012, 0]),
        pelvis,
        (hips * 1.58 * girth**0.7 * loose, 0.05, 0.068 * girth * loose),
    )
    hip = _oval(
        points["pelvis"] + pelvis @ np.array([0, 0.01, -0.004]), pelvis, (hips * 1.55 * girth**0.7, 0.058, 0.07 * girth)
    )
    depth = float((points["neck"] + points["waist"])[2] / 2)
    rings = (top, ribs, waist) if look.tucked else (top, ribs, waist, low)
    bottom = look.trousers
    parts = [
        Part("torso", rings, look.shirt, depth, cloth=True, printed=True),
        Part("seat", (waist, hip), bottom, min(depth, float(points["pelvis"][2])) - 0.03, cloth=True),
        Part(
            "neck",
            (
                _ball(points["neck"] + chest @ np.array([0, -0.012, 0]), 0.033 * girth**0.5),
                _ball(points["nape"], 0.03 * girth**0.5),
            ),
            look.skin,
            float(points["neck"][2]) - 0.02,
        ),
    ]
    if look.skirt:
        knees = [
            points[f"{s}_hip"] + (points[f"{s}_knee"] - points[f"{s}_hip"]) * (0.45 + 0.55 * look.skirt)
            for s, _ in SIDES
        ]
        hem = [_ball(k, 0.055 * girth) for k in knees]
        # Over both thighs, whichever leg is nearer.
        thighs = [float((points[f"{s}_hip"] + points[f"{s}_knee"])[2] / 2) for s, _ in SIDES]
        depth = max(*thighs, depth - 0.05) - 0.025
        parts.append(Part("skirt", (hip, *hem), look.trousers, depth, cloth=True, span=3))
    return parts


def _head(body: Body, look: Look) -> list[Part]:
    points, frame = body.points, body.frames["head"]
    axes = head_axes(body.build)
    centre = points["head"]

    def at(left: float, up: float, forward: float) -> Vector:
        return centre + frame @ (axes * np.array([left, up, forward]))

    depth = float(centre[2]) + 0.02
    parts = [Part("head", (), look.skin, depth)]
    nose = at(0, 0.06, 0.95), at(0, -0.14, 1.06)
    # In profile and from the front the nose stands before the face, from behind it is covered.
    parts.append(
        Part(
            "nose",
            (_ball(nose[0], axes[1] * 0.05), _ball(nose[1], axes[1] * 0.11)),
            look.skin,
            depth + (0.001 if frame[2, 2] > -0.2 else -0.001),
        )
    )
    jaw = at(0, -0.55, 0.25), at(0, -0.82, 0.42)
    jaw_colour = look.hair if look.beard else look.skin
    parts.append(Part("jaw", (_ball(jaw[0], axes[0] * 0.72), _ball(jaw[1], axes[0] * 0.42)), jaw_colour, depth - 0.002))
    for side, sign in SIDES:
        ear = at(sign * 1.0, -0.02, -0.1)
        near = 0.003 if (frame[:, 0] * sign)[2] > 0.15 else -0.003
        parts.append(
            Part(
                f"{side}_ear",
                (_oval(ear, frame, (axes[0] * 0.1, axes[1] * 0.22, axes[2] * 0.16)),),
                look.skin,
                depth + near,
                span=1,
            )
        )
    if look.hair_style == "long":
        rings = (
            _ball(at(0, 0.25, -0.25), axes[0] * 1.02),
            _ball(at(0, -0.7, -0.45), axes[0] * 0.95),
            _ball(at(0, -1.75, -0.7), axes[0] * 0.7),
        )
        # Down the back: before everything when the face is turned away, behind the trunk when it is not.
        trunk = float((points["neck"] + points["waist"])[2] / 2)
        away = frame[2, 2] < -0.2
        behind = float(np.mean([r.centre[2] for r in rings]))
        parts.append(Part("hair", rings, look.hair, max(behind, depth + 0.004) if away else min(behind, trunk - 0.025)))
    elif look.hair_style == "bun":
        parts.append(
            Part("hair", (_ball(at(0, 0.55, -1.0), axes[0] * 0.45),), look.hair, depth - 0.05 * frame[2, 2], span=1)
        )
    elif look.hair_style == "cap":
        brim = (
            _oval(at(0, 0.42, 0.75), frame, (axes[0] * 0.72, axes[1] * 0.06, axes[2] * 0.3)),
            _oval(at(0, 0.34, 1.25), frame, (axes[0] * 0.55, axes[1] * 0.05, axes[2] * 0.25)),
        )
        parts.append(Part("cap", brim, look.accent, depth + 0.06 * frame[2, 2]))
    return parts


def _arm(body: Body, look: Look, side: str) -> list[Part]:
    points, build = body.points, body.build
    girth = build.girth**0.8
    shoulder, elbow, wrist, hand = (points[f"{side}_{n}"] for n in ("shoulder", "elbow", "wrist", "hand"))
    frame = body.frames[f"{side}_forearm"]
    upper = float((shoulder + elbow)[2] / 2) + 0.03
    lower = float((elbow + wrist)[2] / 2) + 0.032
    parts = [
        Part(f"{side}_arm", (_ball(shoulder, 0.031 * girth), _ball(elbow, 0.024 * girth)), look.skin, upper),
        Part(
            f"{side}_forearm",
            (_ball(elbow, 0.024 * girth), _ball((2 * elbow + wrist) / 3, 0.0245 * girth), _ball(wrist, 0.0155 * girth)),
            look.skin,
            lower,
        ),
        Part(
            f"{side}_hand",
            (
                _ball(wrist, 0.0145),
                _oval(wrist * 0.45 + hand * 0.55, frame, (0.013, 0.024, 0.022)),
                _oval(wrist * 0.08 + hand * 0.92, frame, (0.009, 0.015, 0.016)),
            ),
            look.skin,
            lower + 0.001,
        ),
    ]
    loose = look.looseness * girth
    if look.sleeve > 0:
        end = min(1.0, look.sleeve * 2)
        cuff = shoulder + (elbow - shoulder) * end
        parts.append(
            Part(
                f"{side}_arm",
                (_ball(shoulder, 0.033 * girth), _ball(cuff, (0.033 - 0.006 * end) * loose)),
                look.shirt,
                upper + 0.0005,
                cloth=True,
                printed=True,
            )
        )
    if look.sleeve > 0.5:
        cuff = elbow + (wrist - elbow) * (look.sleeve * 2 - 1)
        parts.append(
            Part(
                f"{side}_forearm",
                (_ball(elbow, 0.027 * loose), _ball(cuff, 0.02 * loose)),
                look.shirt,
                lower + 0.0015,
                cloth=True,
                printed=True,
            )
        )
    return parts


def _leg(body: Body, look: Look, side: str) -> list[Part]:
    points, build = body.points, body.build
    girth = build.girth**0.8
    hip, knee, ankle, heel, toe = (points[f"{side}_{n}"] for n in ("hip", "knee", "ankle", "heel", "toe"))
    upper = float((hip + knee)[2] / 2) - 0.03
    lower = float((knee + ankle)[2] / 2) - 0.028
    calf = (2 * knee + ankle) / 3 - body.frames[f"{side}_shank"][:, 2] * 0.008
    parts = [
        Part(f"{side}_thigh", (_ball(hip, 0.056 * girth), _ball(knee, 0.034 * girth)), look.skin, upper),
        Part(
            f"{side}_shank",
            (_ball(knee, 0.033 * girth), _ball(calf, 0.036 * girth), _ball(ankle, 0.02 * girth)),
            look.skin,
            lower,
        ),
        Part(
            f"{side}_foot",
            (_ball(ankle, 0.024), _ball(heel, 0.021), _ball(toe, 0.016)),
            look.shoes,
            lower + 0.004,
            cloth=True,
            span=3,
        ),
    ]
    loose = look.looseness * girth
    if look.leg > 0:
        end = min(1.0, look.leg * 2)
        cuff = hip + (knee - hip) * end
        parts.append(
            Part(
                f"{side}_thigh",
                (_ball(hip, 0.058 * girth), _ball(cuff, (0.056 - 0.019 * end) * loose)),
                look.trousers,
                upper + 0.0005,
                cloth=True,
            )
        )
    if look.leg > 0.5:
        cuff = knee + (ankle - knee) * (look.leg * 2 - 1)
        parts.append(
            Part(
                f"{side}_shank",
                (_ball(knee, 0.037 * loose), _ball(calf, 0.035 * loose), _ball(cuff, 0.028 * loose)),
                look.trousers,
                lower + 0.005,
                cloth=True,
            )
        )
    return parts
